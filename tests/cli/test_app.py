"""How a command ends: exit codes, and errors in one line."""

import importlib.util

import pytest

from autoplay_rag import cli as cli_package


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["nonsense"], "nonsense"),
        (["tail"], "URL"),
        (["tail", "ftp://connector.example/stream/x"], "http"),
        (["tail", "http://connector.example/stream/x", "--limit", "0"], "limit"),
        (["connector", "--rate", "0"], "rate"),
        (["connector", "--port", "many"], "port"),
        (["ingest", "http://connector.example/stream/x", "--store", "pg:x"], "chroma:PATH"),
        (["ingest", "http://connector.example/stream/x", "--embedder", "bert"], "openai:MODEL"),
        (["ingest", "http://connector.example/stream/x", "--embedder", "openai"], "API key"),
        (["search", " "], "empty"),
        (["dead-letters", "retry", "journal.db"], "--all"),
        (["dead-letters", "discard", "journal.db", "1", "--all"], "--all"),
    ],
)
def test_wrong_usage_exits_with_2(cli, args, says):
    ended = cli(*args)
    assert ended.returncode == 2
    assert_one_error(ended, says)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["connector", "--recording", "absent.jsonl"], "absent.jsonl: No such file"),
        (["search", "who exported?"], "no store at chroma"),
        (["status", "absent.db"], "no journal at absent.db"),
        (["dead-letters", "list", "absent.db"], "no journal at absent.db"),
    ],
)
def test_what_fails_exits_with_1(cli, args, says):
    ended = cli(*args)
    assert ended.returncode == 1
    assert_one_error(ended, says)


@pytest.mark.parametrize("args", [[], ["dead-letters"]])
def test_alone_it_says_what_there_is_to_do(cli, args):
    ended = cli(*args)
    assert ended.returncode == 2
    assert "Usage" in ended.stdout
    assert ended.stderr == ""


def test_help_exits_with_0(cli):
    for args in ([], ["ingest"], ["dead-letters"]):
        ended = cli(*args, "--help")
        assert (ended.returncode, ended.stderr) == (0, "")


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


def assert_one_error(ended, says):
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    assert says in line
