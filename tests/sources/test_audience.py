"""Whom a pull source watches."""

from types import SimpleNamespace

from autoplay_rag.sources import audience as audience_module
from autoplay_rag.sources.audience import Audience

HOUR = 3600.0


async def test_who_asked_is_watched_for_an_hour(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(audience_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    audience = Audience("asked", 100, print)
    audience.note_asked("ann")
    audience.note_asked("bob")
    now[0] += HOUR / 2
    audience.note_asked("ann")
    assert sorted(await audience.wanted()) == ["ann", "bob"]
    now[0] += HOUR / 2 + 1
    assert await audience.wanted() == ["ann"]
    now[0] += HOUR / 2
    assert await audience.wanted() == []


async def test_those_who_asked_last_are_kept():
    audience = Audience("asked", 3, print)
    for user in ("ann", "bob", "cid", "ann", "dan"):
        audience.note_asked(user)
    assert await audience.wanted() == ["cid", "ann", "dan"]
    audience.forget("cid")
    assert await audience.wanted() == ["ann", "dan"]


async def test_a_collection_does_not_change_by_who_asks():
    audience = Audience({"ann"}, 3, print)
    audience.note_asked("bob")
    assert await audience.wanted() == ["ann"]
