import os

import pytest

from autoplay_rag._filelock import FileLock

fcntl = pytest.importorskip("fcntl")


@pytest.fixture
def lock(tmp_path):
    return FileLock(tmp_path / "journal.lock")


def test_it_is_held_until_it_is_released(lock):
    assert FileLock(lock.path).is_held() is False  # the file does not exist yet
    assert lock.acquire()
    assert FileLock(lock.path).is_held() is True
    assert lock.is_held() is True
    lock.release()
    assert FileLock(lock.path).is_held() is False


def test_checking_needs_only_read_access(lock, monkeypatch):
    lock.acquire()
    opened = os.open

    def read_only(path, flags, *rest):
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, flags, *rest)

    monkeypatch.setattr(os, "open", read_only)
    assert FileLock(lock.path).is_held() is True
    lock.release()
    assert FileLock(lock.path).is_held() is False


def test_without_read_access_the_result_is_unknown(lock, monkeypatch):
    lock.acquire()

    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        assert FileLock(lock.path).is_held() is None
    lock.release()


def test_concurrent_checks_do_not_see_each_other(lock):
    lock.acquire()
    lock.release()
    other = os.open(lock.path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_SH)  # what another process does while it checks
    try:
        assert lock.is_held() is False
    finally:
        os.close(other)


def test_on_a_full_disk_it_can_be_had_and_given_back(lock, monkeypatch):
    def full(*_args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        assert lock.acquire()
    assert FileLock(lock.path).is_held() is True
    lock.release()
    assert FileLock(lock.path).acquire()
