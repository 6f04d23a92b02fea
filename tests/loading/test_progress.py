"""Progress appears on a terminal and in a notebook, not in a log or a pipe."""

from __future__ import annotations

import io
import threading
import time
from contextlib import nullcontext, redirect_stderr
from types import SimpleNamespace

import pytest

from autoplay_rag.loading import progress as module
from autoplay_rag.loading.progress import Counted, is_watched, shown_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Cell(io.StringIO):
    """What a notebook's kernel uses as standard error."""


Cell.__module__ = "ipykernel.iostream"


class Broken(Terminal):
    def write(self, text: str) -> int:
        raise OSError("the terminal has gone")


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "_DELAY", 0.0)
    monkeypatch.setattr(module, "_PERIOD", 0.005)


@pytest.mark.parametrize(
    ("stream", "watched"),
    [
        (Terminal(), True),
        (Cell(), True),
        (io.StringIO(), False),
        (io.TextIOWrapper(io.BytesIO()), False),
        (closed(), False),
        (None, False),
    ],
    ids=["terminal", "notebook", "file", "pipe", "closed", "none"],
)
def test_a_terminal_and_a_notebook_are_watched(stream, watched):
    assert is_watched(stream) is watched


def wait_for(stream: io.StringIO, text: str) -> None:
    deadline = time.monotonic() + 30
    while text not in stream.getvalue():
        assert time.monotonic() < deadline, stream.getvalue()
        time.sleep(0.002)


@pytest.mark.parametrize(
    ("limits", "line"),
    [
        ({}, "Loader: 2 documents, 0 s"),
        ({"max_documents": 9}, "Loader: 2 of 9 documents, 0 s"),
        ({"max_seconds": 60.0}, "Loader: 2 documents, 0 of 60 s"),
        ({"max_documents": 9, "max_seconds": 0.5}, "Loader: 2 of 9 documents, 0 of 0.5 s"),
    ],
)
def test_the_line_says_what_came_and_what_is_awaited(monkeypatch, limits, line):
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: 5.0))
    stream = Terminal()
    documents = Counted(str)
    documents("of an earlier load")
    with redirect_stderr(stream), shown_progress(None, "Loader", documents, **limits):
        documents("one")
        documents("two")
        wait_for(stream, line)
    assert stream.getvalue().split("\r")[-2].strip() == "", "the line is removed"


@pytest.mark.parametrize(
    ("wanted", "kind", "shown"),
    [
        (None, Terminal, True),
        (None, Cell, True),
        (None, io.StringIO, False),
        (True, io.StringIO, True),
        (False, Terminal, False),
        (False, Cell, False),
    ],
)
def test_it_is_shown_where_it_is_wanted(wanted, kind, shown):
    stream = kind()
    with redirect_stderr(stream), shown_progress(wanted, "Loader", Counted(str)):
        if shown:
            wait_for(stream, "Loader: 0 documents")
    assert bool(stream.getvalue()) is shown


@pytest.mark.parametrize("stream", [None, closed(), Broken()], ids=["none", "closed", "broken"])
def test_a_stream_that_cannot_be_written_is_no_failure(stream):
    threads = threading.active_count()
    with redirect_stderr(stream), shown_progress(True, "Loader", Counted(str)):
        pass
    assert threading.active_count() == threads


@pytest.mark.parametrize("fails", [False, True])
def test_a_load_that_is_over_soon_says_nothing_and_leaves_no_thread(monkeypatch, fails):
    stream = Terminal()
    monkeypatch.setattr(module, "_DELAY", 30.0)
    threads = threading.active_count()
    with (
        pytest.raises(LookupError) if fails else nullcontext(),
        redirect_stderr(stream),
        shown_progress(True, "Loader", Counted(str)),
    ):
        if fails:
            raise LookupError
    assert stream.getvalue() == ""
    assert threading.active_count() == threads
