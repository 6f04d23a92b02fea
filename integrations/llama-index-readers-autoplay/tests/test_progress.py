"""Progress appears on a terminal and in a notebook, not in a log or a pipe."""

from __future__ import annotations

import io
import os
import pickle
import sys
import time
from contextlib import redirect_stderr

import pytest
from autoplay_rag.devserver import samples
from autoplay_rag.loading import progress as module

from llama_index.readers.autoplay import AutoplayReader


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "_DELAY", 0.0)
    monkeypatch.setattr(module, "_PERIOD", 0.005)


def wait_for(stream: io.StringIO, text: str) -> None:
    deadline = time.monotonic() + 30
    while text not in stream.getvalue():
        assert time.monotonic() < deadline, stream.getvalue()
        time.sleep(0.002)


def patient(_payloads) -> str:
    """Return a text once the progress line is there; the load continues until then."""
    wait_for(sys.stderr, "AutoplayReader: 0 of 1 documents")
    return "text"


@pytest.fixture
def stream_url(local_connector, make_payload) -> str:
    return local_connector([make_payload("Clicked Save")]).url


@pytest.mark.parametrize("how", ["load", "aload"])
async def test_a_load_from_a_stream_shows_how_far_it_is(stream_url, how):
    reader = AutoplayReader(stream_url, max_documents=1, max_seconds=60, render=patient)
    with redirect_stderr(Terminal()) as stream:
        documents = reader.load_data() if how == "load" else await reader.aload_data()
    assert [document.text for document in documents] == ["text"]
    assert " of 60 s" in stream.getvalue()


def test_it_says_nothing_into_a_pipe(stream_url):
    with redirect_stderr(io.StringIO()) as stream:
        assert len(AutoplayReader(stream_url, max_documents=1).load_data()) == 1
    assert stream.getvalue() == ""


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no such terminals on Windows")
def test_it_says_it_on_a_real_terminal(stream_url):
    ours, theirs = os.openpty()
    said = []
    reader = AutoplayReader(
        stream_url, max_documents=1, render=lambda _: said.append(os.read(ours, 1_000)) or "text"
    )
    with os.fdopen(theirs, "w") as terminal, redirect_stderr(terminal):
        reader.load_data()
    os.close(ours)
    assert b"AutoplayReader: 0 of 1 documents" in said[0]


def test_limits_of_one_load_are_shown(stream_url):
    reader = AutoplayReader(stream_url, render=patient)
    with redirect_stderr(Terminal()) as stream:
        assert len(reader.load_data(max_documents=1, max_seconds=50)) == 1
    assert " of 50 s" in stream.getvalue()


def test_it_is_serialised():
    for wanted in (None, True, False):
        reader = AutoplayReader("http://127.0.0.1:9/stream/x", progress=wanted)
        assert AutoplayReader.from_dict(reader.to_dict()).progress is wanted


def test_a_reader_of_a_recording_takes_it_and_can_be_pickled():
    reader = AutoplayReader.from_recording(
        samples(), max_documents=1, progress=True, render=patient
    )
    for each in (reader, pickle.loads(pickle.dumps(reader))):
        with redirect_stderr(io.StringIO()):
            assert len(each.load_data()) == 1
