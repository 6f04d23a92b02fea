"""The file that says where a server is."""

import os
import stat

import pytest

from autoplay_rag._filelock import FileLock
from autoplay_rag.serve import RunningServer, find_running
from autoplay_rag.serve.running import announced, running_file


@pytest.fixture
def journal(tmp_path):
    path = tmp_path / "journal.db"
    lock = FileLock(tmp_path / "journal.db.lock")
    assert lock.acquire()
    yield path
    lock.release()


def test_the_file_is_found_while_the_server_runs(journal):
    server = RunningServer("http://127.0.0.1:8760", "secret", os.getpid())
    with announced(journal, server) as path:
        assert path == running_file(journal)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert find_running(journal) == server
        assert find_running(str(journal)) == server
    assert not path.exists()
    assert find_running(journal) is None
    assert "secret" not in repr(server)


def test_the_file_of_a_killed_server_is_not_believed(tmp_path, journal):
    server = RunningServer("http://127.0.0.1:8760", "secret", os.getpid())
    with announced(journal, server):
        (tmp_path / "journal.db.lock").write_text("1")  # another process holds the lock
        assert find_running(journal) is None
    dead = tmp_path / "other.db"
    with announced(dead, server):  # nobody holds it
        assert find_running(dead) is None


def test_a_file_that_others_may_read_or_write_is_not_believed(journal):
    with announced(journal, RunningServer("http://evil", "secret", os.getpid())) as path:
        path.chmod(0o644)
        assert find_running(journal) is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"{}", b'{"url": 1, "key": "k", "pid": 1}', b"\xff"]
)
def test_a_broken_file_is_not_believed(journal, content):
    path = running_file(journal)
    path.write_bytes(content)
    path.chmod(0o600)
    assert find_running(journal) is None


def test_a_later_server_replaces_the_file(journal):
    first = RunningServer("http://127.0.0.1:1", "first", os.getpid())
    second = RunningServer("http://127.0.0.1:2", "second", os.getpid())
    with announced(journal, first), announced(journal, second):
        assert find_running(journal) == second
