"""Which program runs the worker; no program starts itself repeatedly."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from store_helpers import EAST, chunk

from autoplay_rag.errors import ConfigurationError, MissingExtraError, StoreUnavailableError
from autoplay_rag.stores import ChromaStore

APPLICATION = """
import asyncio, os, sys
with open({log!r}, "a") as log:
    print("start", file=log)
sys.executable = {executable!r}
{prepare}
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.stores import ChromaStore
async def main():
    store = ChromaStore({folder!r}, timeout=60, python={python!r})
    try:
        await store.start("m")
        return "started"
    finally:
        await store.aclose()
try:
    outcome = asyncio.run(main())
except ConfigurationError as error:
    outcome = f"refused: {{error}}"
with open({log!r}, "a") as log:
    print(outcome, file=log)
"""


def program(path: Path, *lines: str) -> Path:
    """Write an executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(("#!/bin/sh", *lines, "")))
    path.chmod(0o755)
    return path


@pytest.fixture
def application(tmp_path):
    """Run a program that uses a store and is its own `sys.executable`; return its log lines."""

    def run(
        name: str, *, executable: str | None = "", prepare: str = "", python: str | None = None
    ) -> list[str]:
        app, main, log = tmp_path / name, tmp_path / "main.py", tmp_path / "log"
        main.write_text(
            APPLICATION.format(
                log=str(log),
                executable=str(app) if executable == "" else executable,
                prepare=prepare,
                folder=str(tmp_path / "chroma"),
                python=python if python != "itself" else str(app),
            )
        )
        program(app, f'exec "{sys.executable}" "{main}" "$@"')
        subprocess.run([str(app)], timeout=120, check=True, capture_output=True)
        return log.read_text().splitlines()

    return run


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("invoicing", {"prepare": "sys.frozen = True"}),  # PyInstaller
        ("python-frozen", {"prepare": "sys.frozen = 'console_exe'"}),  # cx_Freeze, py2exe
        ("uwsgi", {}),
        ("soffice.bin", {}),
        ("host-none", {"executable": None}),
        ("host-missing", {"executable": "/nowhere/bin/python3"}),
    ],
)
def test_a_host_program_is_not_started_but_refused_in_words(application, name, options):
    lines = application(name, **options)
    assert lines[0] == "start"
    assert lines[1].startswith("refused: ")
    assert "ChromaStore(..., python=PATH)" in lines[1]
    assert len(lines) == 2


def test_a_host_program_that_names_an_interpreter_works(application):
    lines = application("invoicing", prepare="sys.frozen = True", python=sys.executable)
    assert lines == ["start", "started"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("python-like", {}),  # nothing shows that it is not an interpreter
        ("invoicing", {"python": "itself"}),
        ("invoicing-frozen", {"python": "itself", "prepare": "sys.frozen = True"}),
    ],
)
def test_a_program_that_starts_itself_all_the_same_does_so_once_at_most(application, name, options):
    lines = application(name, **options)
    assert lines.count("start") <= 2
    assert len(lines) == 2 * lines.count("start")
    assert all(line.startswith("refused: ") for line in lines if line != "start")
    if lines.count("start") == 2:
        assert "a worker does not start another" in lines[2]
        assert "ended with status 0 before it was ready" in lines[3]


@pytest.mark.parametrize("executable", [None, "", "uwsgi", "python3.missing", "a-file", "a-folder"])
def test_an_executable_that_is_not_an_interpreter_is_refused_before_anything_starts(
    monkeypatch, tmp_path, executable
):
    program(tmp_path / "uwsgi", f'exec "{sys.executable}" "$@"')
    (tmp_path / "a-file").mkdir()
    (tmp_path / "a-file" / "python3").write_text("not executable")
    (tmp_path / "a-folder" / "python3").mkdir(parents=True)
    path = executable and str(tmp_path / executable)
    if executable in ("a-file", "a-folder"):
        path += "/python3"
    monkeypatch.setattr(sys, "executable", path)
    with pytest.raises(
        ConfigurationError, match=r"python=PATH\) with the path of a Python"
    ) as refused:
        ChromaStore(tmp_path / "chroma")
    assert (repr(path) if path else "sys.executable is not set") in str(refused.value)
    assert not (tmp_path / "chroma").exists()


@pytest.mark.parametrize(
    "name",
    ["python", "python3.13t", "python3-dbg", "Python", "pypy3", "python.exe", ".python3-wrapped"],
)
def test_the_names_of_interpreters_are_known(monkeypatch, tmp_path, name):
    path = program(tmp_path / name, f'exec "{sys.executable}" "$@"')
    monkeypatch.setattr(sys, "executable", str(path))
    assert ChromaStore(tmp_path / "chroma")._interpreter.path == str(path)


@pytest.mark.parametrize("python", ["", "no-such-interpreter", "/nowhere/python3", "/"])
def test_an_interpreter_that_cannot_be_executed_is_refused(tmp_path, python):
    with pytest.raises(ConfigurationError, match=r"python='.*' is not executable"):
        ChromaStore(tmp_path, python=python)


def test_a_sibling_has_the_same_interpreter(tmp_path):
    link = tmp_path / "interpreter"
    link.symlink_to(sys.executable)
    sibling = ChromaStore(tmp_path, python=link).sibling("large")
    assert sibling._interpreter.path == str(link)  # the link's path identifies a venv


async def test_a_named_interpreter_has_its_own_import_path(monkeypatch, tmp_path):
    (tmp_path / "shadow").mkdir()
    (tmp_path / "shadow" / "chromadb.py").write_text("raise RuntimeError('of another Python')")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "shadow"), *sys.path])
    store = ChromaStore(tmp_path / "chroma", python=sys.executable)
    await store.upsert([chunk("a")], [EAST])
    assert await store.count() == 1
    await store.aclose()


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("exit 0", "ended with status 0"),
        ("exit 3", "ended with status 3"),
        ("echo Welcome to the application", "."),
        ("printf '\\001\\000\\000\\000\\301'; exec sleep 60", "wrote other data"),
        ("exec 1>&-; exec sleep 60", "wrote other data"),
    ],
)
async def test_a_program_that_does_not_run_the_worker_is_named(tmp_path, line, what):
    path = program(tmp_path / "program", line)
    store = ChromaStore(tmp_path / "chroma", python=path)
    with pytest.raises(ConfigurationError, match=what) as refused:
        await store.start("m")
    assert str(path) in str(refused.value)
    assert "python=PATH" in str(refused.value)
    await store.aclose()


async def test_a_worker_that_is_killed_before_it_is_ready_is_an_outage(tmp_path):
    path = program(tmp_path / "program", "kill -9 $$")
    store = ChromaStore(tmp_path / "chroma", python=path)
    with pytest.raises(StoreUnavailableError, match="status -9"):
        await store.start("m")
    await store.aclose()


async def test_a_program_that_says_nothing_is_ended_after_the_timeout(tmp_path):
    path = program(tmp_path / "program", "exec sleep 60")
    store = ChromaStore(tmp_path / "chroma", python=path, timeout=0.2)
    with pytest.raises(StoreUnavailableError, match=r"within 0\.2 s"):
        await store.start("m")
    await store.aclose()


async def test_an_interpreter_without_chromadb_says_what_to_install(tmp_path):
    path = program(
        tmp_path / "program",
        f'shift 5; exec "{sys.executable}" -W ignore -c "'
        "import sys; sys.modules['chromadb'] = None; sys.argv = ['worker', *sys.argv[1:]]; "
        "import runpy; runpy.run_module('autoplay_rag.stores.chroma.worker', run_name='__main__')"
        '" "$@"',
    )
    store = ChromaStore(tmp_path / "chroma", python=path)
    with pytest.raises(MissingExtraError, match=r"autoplay-rag\[chroma\]"):
        await store.start("m")
    await store.aclose()


def test_the_mark_of_a_worker_is_for_the_worker_alone(tmp_path):
    mark = "AUTOPLAY_RAG_WORKER"
    store = ChromaStore(tmp_path)
    asyncio.run(store.start("m"))
    popen = store._worker._process._popen
    environment = Path(f"/proc/{popen.pid}/environ")
    if environment.exists():  # Linux
        assert f"{mark}=1".encode() in environment.read_bytes().split(b"\0")
    assert mark not in os.environ
    asyncio.run(store.aclose())
