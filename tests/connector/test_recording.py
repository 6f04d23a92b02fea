"""Recordings: they round-trip, and a bad line loses at most itself."""

import bz2
import contextlib
import gzip
import lzma
import math
import os
import random
import re
import sqlite3
import threading
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag.connector import recording
from autoplay_rag.connector.recording import (
    RecordingWriter,
    read_recording,
    read_recording_lines,
)
from autoplay_rag.errors import RecordingError
from autoplay_rag.payloads import ActionsPayload, ChatTurn, SlimAction, SummaryPayload

SUMMARY = b'{"type":"summary","session_id":"s1","summary":"Exported a report."}'

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
times = st.floats(0, 2e9)
actions = st.builds(SlimAction, title=texts, description=texts, index=st.integers(0, 99))
payloads = st.one_of(
    st.builds(SummaryPayload, product_id=texts, summary=texts, forwarded_at=times),
    st.builds(ChatTurn, question=texts, answer=texts, tools=st.lists(texts, max_size=3)),
    st.lists(actions, max_size=4).map(lambda a: ActionsPayload(actions=a, count=len(a))),
)


@given(written=st.lists(payloads, max_size=8))
def test_what_is_written_is_read_back(tmp_path_factory, written):
    path = tmp_path_factory.mktemp("recordings") / "all.jsonl"
    with RecordingWriter(path) as writer:
        for payload in written:
            writer.write(payload)
    assert writer.count == len(written)
    assert list(read_recording(path)) == written
    assert path.read_bytes().count(b"\n") == len(written), "one line each, whatever the text holds"


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    path = tmp_path / "growing.jsonl"
    with RecordingWriter(path) as writer:
        for count in (1, 2, 3):
            writer.write(SummaryPayload(session_id="s1"))
            assert len(list(read_recording(path))) == count


@pytest.mark.parametrize(
    ("held", "lines"), [(SUMMARY, 2), (SUMMARY + b"\n", 2), (SUMMARY[:20], 1), (b"", 1)]
)
def test_append_ends_an_unended_line_first(tmp_path, held, lines):
    path = tmp_path / "all.jsonl"
    path.write_bytes(held)
    with RecordingWriter(path, append=True) as writer:
        writer.write(SummaryPayload(session_id="s2"))
    found = list(read_recording(path, on_error=lambda error: None))
    assert len(found) == lines
    assert found[-1].session_id == "s2"
    assert b"\n\n" not in path.read_bytes()


def test_append_keeps_the_recording_and_the_default_overwrites_it(tmp_path):
    path = tmp_path / "twice.jsonl"
    for append, expected in ((False, 1), (True, 2), (False, 1)):
        with RecordingWriter(path, append=append) as writer:
            writer.write(SummaryPayload(session_id="s1"))
        assert len(list(read_recording(path))) == expected


def test_blank_lines_a_bom_and_windows_line_ends_do_no_harm(tmp_path):
    path = _file(tmp_path, b"\xef\xbb\xbf" + SUMMARY + b"\r\n\r\n   \n" + SUMMARY)
    assert [p.session_id for p in read_recording(path)] == ["s1", "s1"]
    assert list(read_recording_lines(path)) == [SUMMARY, SUMMARY]


def test_a_bad_line_raises_with_file_and_line_number_and_without_its_text(tmp_path):
    path = _file(tmp_path, SUMMARY + b"\n\n" + b'{"secret": not json\n' + SUMMARY + b"\n")
    reading = read_recording(path)
    assert next(reading).session_id == "s1"
    with pytest.raises(RecordingError, match=re.escape(f"{path}, line 3: ")) as caught:
        next(reading)
    assert "secret" not in str(caught.value)


def test_with_on_error_bad_lines_are_skipped_and_reported(tmp_path):
    path = _file(tmp_path, b"[1]\n" + SUMMARY + b"\nnonsense\n" + SUMMARY + b"\n")
    errors: list[RecordingError] = []
    assert len(list(read_recording(path, on_error=errors.append))) == 2
    assert [re.search(r"line (\d+)", str(e)).group(1) for e in errors] == ["1", "3"]


def test_events_of_unknown_types_are_passed_over_as_in_the_live_stream(tmp_path):
    path = _file(tmp_path, b'{"type":"usertour_trigger"}\n' + SUMMARY + b"\n")
    assert [p.kind for p in read_recording(path)] == ["summary"]
    errors: list[RecordingError] = []
    list(read_recording(path, on_error=errors.append))
    assert "usertour_trigger" in str(errors[0])


def test_an_endless_line_costs_itself_and_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "MAX_EVENT_BYTES", 100)
    path = _file(tmp_path, b"x" * 1000 + b"\n" + SUMMARY + b"\n" + b"y" * 100)
    with pytest.raises(RecordingError, match="line 1: longer than 100 bytes"):
        list(read_recording_lines(path))
    errors: list[RecordingError] = []
    assert list(read_recording_lines(path, on_error=errors.append)) == [SUMMARY]
    assert [re.search(r"line (\d+)", str(e)).group(1) for e in errors] == ["1", "3"]


def test_reading_is_lazy(tmp_path):
    path = _file(tmp_path, SUMMARY + b"\n" + b"nonsense\n")
    assert next(read_recording(path)).kind == "summary"


def test_a_missing_file_is_an_os_error_with_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.jsonl"):
        next(read_recording(tmp_path / "absent.jsonl"))


def test_a_number_json_cannot_hold_does_not_break_the_line(tmp_path):
    path = tmp_path / "nan.jsonl"
    with RecordingWriter(path) as writer:
        writer.write(SummaryPayload(session_id="s1", forwarded_at=math.nan))
    assert next(read_recording(path)).forwarded_at == 0.0


def _file(folder: Path, content: bytes) -> Path:
    path = folder / "recording.jsonl"
    path.write_bytes(content)
    return path


# Other encodings

LINES = b"".join(
    b'{"type":"summary","session_id":"s%d","summary":"Caf\xc3\xa9 \xe2\x80\xa8 %d"}\r\n' % (n, n)
    for n in range(300)
)
COMPRESSORS = {
    "as it is": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}


@pytest.mark.parametrize("compress", COMPRESSORS.values(), ids=COMPRESSORS)
@pytest.mark.parametrize(
    "encoding",
    [
        "utf-8",
        "utf-8-sig",
        "utf-16",
        "utf-16-le",
        "utf-16-be",
        "utf-32",
        "utf-32-le",
        "utf-32-be",
    ],
)
def test_other_encodings_are_read(tmp_path, encoding, compress):
    text = LINES.decode()
    path = _file(tmp_path, compress(text.encode(encoding)))
    found = list(read_recording(path))
    assert [payload.session_id for payload in found] == [f"s{n}" for n in range(300)]
    assert found[7].summary == "Café \u2028 7"
    assert list(read_recording_lines(path)) == LINES.splitlines()


@pytest.mark.parametrize("order", ["be", "le"])
@pytest.mark.parametrize("width", [16, 32])
def test_a_byte_order_mark_is_no_text(tmp_path, width, order):
    path = _file(tmp_path, ("\ufeff" + LINES.decode()).encode(f"utf-{width}-{order}"))
    assert next(read_recording(path)).session_id == "s0"


def _zip(folder):
    path = folder / "all.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("visits.jsonl", LINES)
    return path.read_bytes()


def _database(folder):
    path = folder / "journal.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (x)")
    return path.read_bytes()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_zip, "zip archive"),
        (_database, "SQLite"),
        (lambda _: b"PAR1" + bytes(100), "Parquet"),
        (lambda _: b"\x28\xb5\x2f\xfd" + bytes(100), "Zstandard"),
        (lambda _: b"%PDF-1.7\n", "a PDF"),
        (lambda _: random.Random(1).randbytes(300_000), "not text"),
        (lambda _: gzip.compress(random.Random(1).randbytes(300_000)), "inside this gzip file"),
        (lambda _: gzip.compress(gzip.compress(LINES)), "compressed once more"),
        (lambda _: gzip.compress(LINES)[:50], "damaged or cut-off"),
        (lambda _: gzip.compress(LINES)[:-9] + b"123456789", "damaged or cut-off"),
        (lambda _: b"\x1f\x8b" + bytes(100), "damaged or cut-off"),
        (lambda _: lzma.compress(LINES)[:-40], "damaged or cut-off"),
        (lambda _: bz2.compress(LINES)[:-40], "damaged or cut-off"),
    ],
)
def test_what_cannot_be_a_recording_is_refused_in_one_line(tmp_path, make, said):
    path = _file(tmp_path, make(tmp_path))
    errors = []
    with pytest.raises(RecordingError, match=said) as caught:
        list(read_recording(path, on_error=errors.append))
    assert errors == []
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        b'"caf\xe9"',
        '"éàüöçñ"'.encode("latin-1"),
        '"Отчёт за месяц"'.encode("cp1251"),
        b"\xef\xbb\xbf",
        b"{}",
        "{'ключ': 'значение'}".encode(),
        "価格".encode() * 100,
        b" " + "é".encode() * 100,
        '"é'.encode()[:2],
    ],
    ids=[
        "empty",
        "blank",
        "latin-1",
        "accents in latin-1",
        "cyrillic in cp1251",
        "mark",
        "braces",
        "cyrillic",
        "cjk",
        "a character across the end of the head",
        "a cut character",
    ],
)
def test_text_is_never_refused_as_a_whole(tmp_path, content):
    list(read_recording(_file(tmp_path, content), on_error=lambda error: None))


def test_a_pipe_is_read(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    data = gzip.compress(LINES.decode().encode("utf-16"))
    writing = threading.Thread(target=path.write_bytes, args=(data,))
    writing.start()
    assert len(list(read_recording(path))) == 300
    writing.join()


def test_an_endless_line_of_another_encoding_loses_only_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "MAX_EVENT_BYTES", 100)
    text = '{"x":"' + "é" * 1000 + "\n" + SUMMARY.decode() + "\n" + "é" * 100
    errors: list[RecordingError] = []
    path = _file(tmp_path, text.encode("utf-16"))
    assert list(read_recording_lines(path, on_error=errors.append)) == [SUMMARY]
    assert [re.search(r"line (\d+)", str(e)).group(1) for e in errors] == ["1", "3"]


@pytest.mark.parametrize(
    "held",
    [gzip.compress(SUMMARY), SUMMARY.decode().encode("utf-16"), b"PK\x03\x04\x14\0\0\0"],
    ids=["gzip", "utf-16", "zip"],
)
def test_nothing_is_appended_to_another_encoding(tmp_path, held):
    path = _file(tmp_path, held)
    with pytest.raises(RecordingError, match="cannot append"):
        RecordingWriter(path, append=True)
    assert path.read_bytes() == held
