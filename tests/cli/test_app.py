"""How a command ends: exit codes, and errors in one line."""

import asyncio
import importlib.util
import subprocess
import sys
from importlib.metadata import version

import pytest
import typer

from autoplay_rag import cli as cli_package
from autoplay_rag.cli import app
from autoplay_rag.cli.app import run


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["nonsense"], "nonsense"),
        (["tail"], "URL"),
        (["tail", "ftp://connector.example/stream/x"], "http"),
        (["tail", "http://connector.example/stream/x", "--limit", "0"], "limit"),
        (["tail", "http://connector.example/stream/x", "--limit", "-1"], "limit"),
        (["connector", "--rate", "0"], "rate"),
        (["connector", "--rate", "-1"], "rate"),
        (["connector", "--rate", "nan"], "rate"),
        (["connector", "--port", "many"], "port"),
        (["connector", "--port", "99999"], "port"),
        (["connector", "--port", "-1"], "port"),
        (["ingest", "http://connector.example/stream/x", "--store", "pg:x"], "chroma:PATH"),
        (["ingest", "http://connector.example/stream/x", "--embedder", "bert"], "openai:MODEL"),
        (["ingest", "http://connector.example/stream/x", "--embedder", "openai"], "API key"),
        (["dead-letters", "retry", "journal.db"], "--all"),
        (["dead-letters", "discard", "journal.db", "1", "--all"], "--all"),
    ],
)
def test_wrong_usage_exits_with_2(capsys, args, says):
    assert run(args) == 2
    assert_one_error(capsys, says)


@pytest.mark.parametrize("command", ["ingest", "tail"])
@pytest.mark.parametrize("seconds", ["-1", "-inf", "nan", "soon"])
def test_idle_seconds_that_are_no_time_are_wrong_usage(capsys, tmp_path, command, seconds):
    url = "http://connector.example/stream/x"
    assert run([command, url, "--idle-seconds", seconds]) == 2
    assert_one_error(capsys, "--idle-seconds")
    assert not list(tmp_path.iterdir()), "nothing was begun"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["connector", "--recording", "absent.jsonl"], "absent.jsonl: No such file"),
        (["search", "who exported?"], "no Chroma store at chroma: run"),
        (["status", "absent.db"], "no journal found at absent.db; check the path"),
        (["dead-letters", "list", "absent.db"], "no journal found at absent.db; check the path"),
    ],
)
def test_what_fails_exits_with_1(capsys, args, says):
    assert run(args) == 1
    assert_one_error(capsys, says)


def test_a_search_makes_no_store(capsys, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert run(["search", "who exported?", "--store", f"chroma:{tmp_path}"]) == 1
    assert_one_error(capsys, f"no Chroma store at {tmp_path}: run `autoplay-rag ingest URL` first")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("args", [[], ["dead-letters"]])
def test_alone_it_says_what_there_is_to_do(capsys, args):
    assert run(args) == 2
    printed = capsys.readouterr()
    assert "Usage" in printed.out
    assert printed.err == ""


@pytest.mark.parametrize("args", [[], ["ingest"], ["dead-letters"]])
def test_help_exits_with_0(capsys, args):
    assert run([*args, "--help"]) == 0
    assert "Usage" in capsys.readouterr().out


def test_the_process_ends_with_that_code_and_no_traceback(cli):
    ended = cli("status", "absent.db")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "error: no journal found at absent.db; check the path\n"


def test_the_package_itself_is_the_command():
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-m", "autoplay_rag", "status", "absent.db"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "error: no journal found at absent.db; check the path\n"


def test_without_the_extra_one_line_says_what_to_install(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        cli_package, "find_spec", lambda name: None if name == "typer" else real(name)
    )
    with pytest.raises(SystemExit) as ended:
        cli_package.main()
    assert ended.value.code == (
        "error: autoplay-rag needs an extra: pip install 'autoplay-rag[cli]'"
    )


def assert_one_error(capsys, says):
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    assert says in line


@pytest.mark.parametrize("ending", [KeyboardInterrupt, asyncio.CancelledError, typer.Abort, 130])
def test_an_interruption_is_a_failure_in_one_line(monkeypatch, capsys, ending):
    def interrupted(*_args, **_options):
        if ending == 130:  # newer versions of Typer turn it into this
            return ending
        raise ending

    monkeypatch.setattr(app, "app", interrupted)
    assert run([]) == 1
    assert_one_error(capsys, "interrupted")


def test_a_fault_of_the_program_itself_is_not_hidden(monkeypatch):
    def broken(*_args, **_options):
        raise ZeroDivisionError

    monkeypatch.setattr(app, "app", broken)
    with pytest.raises(ZeroDivisionError):
        run([])


async def test_it_says_its_version(ended):
    code, out, err = await ended("--version")
    assert (code, err) == (0, "")
    assert out == f"autoplay-rag {version('autoplay-rag')}\n"
