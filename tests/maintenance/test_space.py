"""Disk space: what journal and store take, and the warning when little is left."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from autoplay_rag.maintenance.space import Space, space_of
from autoplay_rag.stores import ChromaStore, MemoryStore

MB = 1 << 20


@pytest.mark.parametrize(
    ("journal", "store", "free", "low"),
    [
        (10 * MB, 10 * MB, 127 * MB, True),
        (10 * MB, 10 * MB, 128 * MB, False),
        (1000 * MB, 1000 * MB, 999 * MB, True),
        (1000 * MB, 1000 * MB, 1000 * MB, False),
        (None, None, 1000 * MB, False),
    ],
)
def test_how_much_has_to_be_free(journal, store, free, low):
    space = Space(journal, store, free)
    assert space.is_low is low
    assert (space.warning is not None) is low


def test_sizes(tmp_path):
    (tmp_path / "j.db").write_bytes(bytes(100))
    (tmp_path / "j.db-wal").write_bytes(bytes(20))
    (tmp_path / "j.db.erasures").write_bytes(bytes(3000))
    (tmp_path / "chroma" / "index").mkdir(parents=True)
    (tmp_path / "chroma" / "index" / "data.bin").write_bytes(bytes(7))
    space = space_of(tmp_path / "j.db", tmp_path / "chroma")
    assert (space.journal, space.store) == (120, 7)
    assert 0 < space.free <= shutil.disk_usage(tmp_path).total
    assert space_of(tmp_path / "j.db", None).store is None
    assert not space_of(None, None).is_low


async def test_a_running_pipeline_is_degraded_while_space_is_low(
    make_pipeline, tmp_path, monkeypatch
):
    free = 100 * MB
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    async with make_pipeline(journal=tmp_path / "j.db") as pipeline:
        await pipeline._run.space.look()
        assert pipeline.health.state == "degraded"
        assert "100 MB are free" in pipeline.health.reasons[0]
        free = 200 * MB
        await pipeline._run.space.look()
        assert pipeline.health.state == "ok"


def test_stores_say_where_their_files_are(tmp_path):
    assert ChromaStore(tmp_path / "chroma").data_folder == (tmp_path / "chroma").resolve()
    assert MemoryStore().data_folder is None
