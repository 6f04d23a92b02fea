"""The command as users run it, in its own process."""

import asyncio
import os
import pty
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager

import pytest

# A process inherits ignored signals, so under `nohup` the command would never see a SIGHUP.
MAIN = """
import signal
signal.signal(signal.SIGHUP, signal.{hangup})
from autoplay_rag.cli import main
main()
"""


def command(*args, hangup="SIG_DFL"):
    """The command line. `hangup="SIG_IGN"` starts the command as `nohup` does."""
    return [sys.executable, "-W", "error", "-c", MAIN.format(hangup=hangup), *map(str, args)]


class Running:
    """A running command. Its lines are read as they arrive."""

    def __init__(self, process):
        self.process = process

    async def line(self, containing, stream="stdout"):
        """Wait for a line of `stream` that contains `containing`; skip the lines before it."""
        async with asyncio.timeout(30):
            async for line in getattr(self.process, stream):
                if containing in line.decode():
                    return line.decode().rstrip("\n")
        raise AssertionError(f"{stream} ended without {containing!r}")

    def interrupt(self, number=signal.SIGINT):
        self.process.send_signal(number)

    async def end(self):
        """Wait for the end; return the exit code and the output that was not read yet."""
        async with asyncio.timeout(30):
            out, err = await self.process.communicate()
        return self.process.returncode, out.decode(), err.decode()


def environment(**more):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "AUTOPLAY_"))}
    return {**kept, "PYTHONUNBUFFERED": "1", **more}


@pytest.fixture
def cli(tmp_path):
    """Run a command to its end, in an empty folder and without a terminal."""

    def run(*args, **env):
        return subprocess.run(
            command(*args),
            cwd=tmp_path,
            env=environment(**env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )

    return run


@pytest.fixture
def started(tmp_path):
    """Start a command and let it run. `stdin=None` leaves its standard input open."""

    @asynccontextmanager
    async def start(*args, hangup="SIG_DFL", stdin=b"", **env):
        process = await asyncio.create_subprocess_exec(
            *command(*args, hangup=hangup),
            cwd=tmp_path,
            env=environment(**env),
            stdin=asyncio.subprocess.DEVNULL if stdin == b"" else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        if stdin:
            process.stdin.write(stdin)
            process.stdin.close()
        try:
            yield Running(process)
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()

    return start


@pytest.fixture
def ended(started):
    """Run a command to its end while the test's own loop serves it."""

    async def run(*args, **env):
        async with started(*args, **env) as running:
            return await running.end()

    return run


@pytest.fixture
def started_on_terminal(tmp_path):
    """Start a command on a terminal; return the process and the terminal's other end."""

    def start(*args, **env):
        master, slave = pty.openpty()
        process = subprocess.Popen(
            command(*args),
            cwd=tmp_path,
            env=environment(**{"TERM": "xterm-256color", "COLUMNS": "120", **env}),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        return process, master

    return start


@pytest.fixture
def terminal(started_on_terminal):
    """Run a command to its end on a terminal; return the exit code and the output."""

    def run(*args, **env):
        process, master = started_on_terminal(*args, **env)
        drawn = b"".join(iter(lambda: _read(master), b""))
        os.close(master)
        return process.wait(), drawn.decode()

    return run


def _read(master):
    try:
        return os.read(master, 65536)
    except OSError:  # on Linux, the other end is closed
        return b""


@pytest.fixture
def silent_port():
    """A local port on which nobody listens."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        yield nobody.getsockname()[1]


@pytest.fixture
def eventually():
    """Poll for an effect of another process, which sends no event."""

    async def wait(condition):
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110 - nothing tells across processes
                await asyncio.sleep(0.02)

    return wait
