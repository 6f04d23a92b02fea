from __future__ import annotations

import logging

import pytest

from autoplay_rag.connector.recording import RecordingWriter
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.loading import Limits, LiveSource, PayloadLoader, RecordingSource
from autoplay_rag.payloads import ChatTurn


@pytest.fixture
def recording(tmp_path, make_payload):
    path = tmp_path / "visits.jsonl"
    with RecordingWriter(path) as writer:
        writer.write(make_payload("Clicked Export"))
        writer.write(make_payload(summary="Exported."))
        writer.write(ChatTurn("acme", "s1", question="Where is it?", answer="In your mail."))
    return path


def test_limits_of_a_call_take_the_place_of_the_loaders_own(recording):
    loader = PayloadLoader(RecordingSource(recording), limits=Limits(max_documents=1))
    assert len(loader.load()) == 1
    assert len(loader.load(Limits(max_documents=2))) == 2


def test_chat_turns_of_a_recording_are_given_when_asked_for(recording):
    loader = PayloadLoader(RecordingSource(recording), include="chat")
    [text] = loader.load()
    assert text.metadata["kind"] == "chat"
    assert "In your mail." in text.text


def test_the_text_may_be_ones_own_and_its_failure_costs_only_itself(recording, caplog):
    def render(payloads):
        if payloads[0].kind == "summary":
            raise ValueError("Exported.")
        return "mine"

    loader = PayloadLoader(RecordingSource(recording), render=render)
    assert [text.text for text in loader.load()] == ["mine"]
    assert "render failed (ValueError)" in caplog.text
    assert "Exported." not in caplog.text


def test_a_redact_that_fails_shows_nothing_of_the_payload(recording, caplog):
    def redact(payload):
        raise ValueError(payload.to_text())

    caplog.set_level(logging.DEBUG)
    loader = PayloadLoader(RecordingSource(recording), redact=redact)
    with pytest.warns(UserWarning, match="holds no actions or summary payload"):
        assert loader.load() == []
    assert "redact failed (ValueError)" in caplog.text
    assert "Export" not in caplog.text


def test_what_redact_returns_must_be_a_payload(recording, caplog):
    loader = PayloadLoader(RecordingSource(recording), redact=lambda _: None)
    with pytest.warns(UserWarning, match="holds no"):
        assert loader.load() == []
    assert "redact failed (TypeError)" in caplog.text


@pytest.mark.parametrize("url", ["", "ftp://host/stream/x", "connector.example"])
def test_an_address_that_cannot_work_is_refused_at_once(url):
    with pytest.raises(ConfigurationError, match="url"):
        LiveSource(url)


def test_a_source_shows_no_secret_of_its_address():
    source = LiveSource("https://user:secret@connector.example/stream/acme?key=secret", "secret")
    assert repr(PayloadLoader(source)) == ("PayloadLoader('https://connector.example/stream/acme')")
    assert source.name == "https://connector.example/stream/acme"


def test_limits_are_true_where_there_is_one():
    assert not Limits()
    assert Limits(max_seconds=1)
    with pytest.raises(ConfigurationError, match="idle_seconds must be above 0"):
        Limits(idle_seconds=-1)


@pytest.mark.parametrize(
    "given", [{"max_documents": 2.5}, {"max_documents": "3"}, {"max_seconds": "3"}]
)
def test_a_limit_of_the_wrong_kind_is_named(given):
    (name,) = given
    with pytest.raises(ConfigurationError, match=f"{name} must be a"):
        Limits(**given)


def test_seconds_end_a_recording_too(tmp_path, make_payload):
    path = tmp_path / "long.jsonl"
    with RecordingWriter(path) as writer:
        for _ in range(2_000):
            writer.write(make_payload())
    loader = PayloadLoader(RecordingSource(path), limits=Limits(max_seconds=1e-9))
    assert 0 < len(loader.load()) < 2_000


@pytest.mark.parametrize("bad", [b"nonsense", b"{", b'"text"', b"[1]", b"un caf\xe9 au lait"])
def test_many_bad_lines_are_logged_in_a_few_records(tmp_path, caplog, bad):
    path = tmp_path / "visits.jsonl"
    good = b'{"type":"summary","session_id":"s1","summary":"Exported."}\n'
    path.write_bytes((bad + b"\n") * 2_000 + good)
    assert len(PayloadLoader(RecordingSource(path)).load()) == 1
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 4
    assert lines[-1] == f"skipped 2000 lines of {path} in all"


def test_a_few_bad_lines_are_logged_one_by_one(tmp_path, caplog):
    path = tmp_path / "visits.jsonl"
    path.write_bytes(b"nonsense\n" * 2 + b'{"type":"summary","summary":"Exported."}\n')
    PayloadLoader(RecordingSource(path)).load()
    assert ["line 1:" in caplog.text, "line 2:" in caplog.text, len(caplog.records)] == [
        True,
        True,
        2,
    ]
