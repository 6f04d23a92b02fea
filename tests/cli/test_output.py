"""Standard output and standard error: of any encoding, closed, full, or without a reader."""

import asyncio
import json
import stat
import subprocess

import pytest

from autoplay_rag.devserver import LocalConnector
from autoplay_rag.payloads import ActionsPayload, SlimAction, SummaryPayload

from .conftest import command, environment

TEXT = "→ Überblick ✓ 價格 😀"
PAYLOADS = [
    SummaryPayload("acme", "s1", TEXT, 1, 1.0),
    ActionsPayload("acme", "s✓", actions=[SlimAction(TEXT, TEXT, "https://a.test/✓", 0, "click")]),
]


async def run(tmp_path, shell, *args, **env):
    """Run a command with shell redirections; return the exit code, output and errors."""
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", f'set -o pipefail; "$@" {shell}', "bash", *command(*args),
        cwd=tmp_path, env=environment(**env), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 50)
    return process.returncode, out, err


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "cp437", "utf-16", "shift_jis"])
async def test_every_encoding_will_do(tmp_path, encoding):
    async with LocalConnector(PAYLOADS) as connector:
        code, out, err = await run(
            tmp_path, "", "tail", connector.url, "--limit", "2", PYTHONIOENCODING=encoding
        )
    assert code == 0
    text = out.decode(encoding)
    shown = TEXT.encode(encoding, "backslashreplace").decode(encoding)
    assert text.count(shown) == 2
    assert "Traceback" not in err.decode(encoding)


@pytest.mark.parametrize("options", [(), ("--jsonl",)])
@pytest.mark.parametrize(
    "env", [{"PYTHONIOENCODING": "cp1252"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}]
)
async def test_a_file_is_utf_8_whatever_the_shell_does(tmp_path, options, env):
    path = tmp_path / "out"
    path.write_text("what was there before")
    async with LocalConnector(PAYLOADS) as connector:
        args = ("tail", connector.url, "--limit", "2", "--output", path, *options)
        code, out, err = await run(tmp_path, "", *args, **env)
        assert (code, out) == (0, b"")
        assert b"2 payloads" in err
        text = path.read_bytes().decode()
        if options:
            first, second = map(json.loads, text.splitlines())
            assert first["summary"] == second["actions"][0]["title"] == TEXT
        else:
            assert [TEXT in line for line in text.splitlines()] == [True, True]
        assert text.endswith("\n")


async def test_a_new_file_can_be_read_by_its_owner_alone(tmp_path):
    async with LocalConnector(PAYLOADS) as connector:
        code, _, _ = await run(tmp_path, "", "tail", connector.url, "--limit", "1", "-o", "new")
        assert code == 0
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600
        code, _, err = await run(tmp_path, "", "tail", connector.url, "-o", "absent/new")
    assert (code, err) == (1, b"error: absent/new: No such file or directory\n")


@pytest.mark.parametrize("shell", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("options", [(), ("--jsonl",)])
async def test_closed_streams_are_no_failure(tmp_path, shell, options):
    async with LocalConnector(PAYLOADS) as connector:
        args = ("tail", connector.url, "--limit", "2", *options)
        code, _, err = await run(tmp_path, shell, *args)
    assert code == 0
    assert b"Traceback" not in err


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--version"], 0),
        (["--help"], 0),
        (["status", "absent.db"], 1),
        (["search", "who?"], 1),
        (["nonsense"], 2),
        ([], 2),
    ],
)
@pytest.mark.parametrize("shell", [">&-", ">&- 2>&-", "| true"])
async def test_the_exit_code_is_the_same_without_a_reader(tmp_path, args, code, shell):
    ended, _, err = await run(tmp_path, shell, *args)
    assert ended == code
    assert b"Traceback" not in err
    assert b"BrokenPipe" not in err


@pytest.mark.slow
@pytest.mark.parametrize("shell", [">&-", ">&- 2>&-", "2>&- | true", "2>&1 | true"])
async def test_an_ingest_stores_all_without_standard_output(tmp_path, ended, shell):
    async with LocalConnector(PAYLOADS) as connector:
        code, _, err = await run(tmp_path, shell, "ingest", connector.url, "--idle-seconds", "3")
    assert code == 0, err
    assert b"Traceback" not in err
    _, out, _ = await ended("status", "--json")
    assert json.loads(out)["stored"] == 2


@pytest.mark.parametrize("args", [["--version"], ["--help"]])
async def test_a_full_disk_is_one_line(tmp_path, args):
    code, _, err = await run(tmp_path, "> /dev/full", *args)
    assert (code, err) == (1, b"error: No space left on device\n")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437"])
async def test_errors_and_help_can_be_written_in_every_encoding(tmp_path, encoding):
    code, _, err = await run(tmp_path, "", "status", "✓.db", PYTHONIOENCODING=encoding)
    assert (code, err) == (1, b"error: no journal found at \\u2713.db; check the path\n")
    code, out, err = await run(tmp_path, "", "--help", PYTHONIOENCODING=encoding)
    assert (code, err) == (0, b"")
    assert b"Usage" in out


async def test_errors_as_json(tmp_path):
    args = ("--log-format", "json", "status", "✓\x1b.db")
    code, out, err = await run(tmp_path, "", *args)
    assert (code, out) == (1, b"")
    line = json.loads(err)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "ERROR",
        "logger": "autoplay_rag.cli",
        "message": "no journal found at ✓\ufffd.db; check the path",
    }
