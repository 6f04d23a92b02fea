from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta, timezone
from fractions import Fraction
from typing import get_args

import pytest

from autoplay_rag.errors import ConfigurationError, MissingCapabilityError
from autoplay_rag.stores import Capability, Filter, StoreIdentity, TextStore, VectorStore


class Bare(VectorStore):
    async def upsert(self, chunks, vectors):
        pass

    async def query(self, vector, k, filter):
        return []


class Able(Bare):
    async def delete(self, ids):
        pass

    def sibling(self, name):
        return self


def test_the_abstract_methods_must_be_written():
    with pytest.raises(TypeError, match=r"query.*upsert"):
        VectorStore()
    with pytest.raises(TypeError, match=r"add.*search"):
        TextStore()


async def test_a_bare_store_has_defaults_and_no_capability():
    store = Bare()
    await store.start("model")
    await store.aclose()
    assert store.capabilities == frozenset()
    assert store.persistent
    assert store.max_batch == 1000
    assert not await store.compact()
    assert not await store.erase()
    with pytest.raises(MissingCapabilityError, match="Bare has no 'count'"):
        await store.count()


@pytest.mark.parametrize(
    ("capability", "arguments"),
    [
        ("delete", (["a"],)),
        ("get", (["a"],)),
        ("scan", ()),
        ("update_metadata", ({},)),
        ("score", ([1.0], ["a"])),
        ("sibling", ("name",)),
        ("exchange", ("name",)),
        ("drop", ()),
        ("identity", ()),
    ],
)
async def test_a_method_that_is_not_overridden_names_the_store_and_the_capability(
    capability, arguments
):
    assert capability in get_args(Capability)
    with pytest.raises(MissingCapabilityError, match=f"Bare has no '{capability}'") as missing:
        await getattr(Bare(), capability)(*arguments)
    assert missing.value.capability == capability


async def test_saving_an_identity_belongs_to_the_capability():
    with pytest.raises(MissingCapabilityError, match="Bare has no 'identity'"):
        await Bare().save_identity(StoreIdentity("s", "j"))


def test_what_is_overridden_is_declared():
    assert Able().capabilities == {"delete", "sibling"}


@pytest.mark.parametrize(
    ("moment", "seconds"),
    [
        (0, 0.0),
        (12.5, 12.5),
        (-3, -3.0),
        (Fraction(1, 2), 0.5),
        (date(1970, 1, 2), 86400.0),
        (datetime(1970, 1, 1, 0, 1, tzinfo=UTC), 60.0),
        (datetime(1970, 1, 1, 2, 0, tzinfo=timezone(timedelta(hours=2))), 0.0),
    ],
)
def test_times_become_unix_seconds(moment, seconds):
    found = Filter(since=moment, until=moment)
    assert (found.since, found.until) == (seconds, seconds)
    assert type(found.since) is float
    assert found == Filter(since=seconds, until=seconds)
    assert found.conditions() == [("ended_at", ">=", seconds), ("started_at", "<=", seconds)]


@pytest.mark.parametrize(
    "moment",
    [
        math.nan,
        math.inf,
        -math.inf,
        10**400,
        True,
        "soon",
        "100",
        "2026-13-01",
        b"1",
        [1],
        object(),
    ],
)
@pytest.mark.parametrize("name", ["since", "until"])
def test_what_is_not_a_time_is_refused(name, moment):
    with pytest.raises(ConfigurationError, match=f"{name} must be Unix seconds, a datetime"):
        Filter(**{name: moment})


def test_a_datetime_without_a_zone_is_refused_with_the_reason():
    with pytest.raises(ConfigurationError, match=r"since is a datetime without a time zone.*utc"):
        Filter(since=datetime(2026, 1, 1))  # noqa: DTZ001 - that is the point


@pytest.mark.parametrize(
    ("metadata", "passes"),
    [
        ({"user_id": "u1", "ended_at": 5}, True),
        ({"user_id": "u1", "ended_at": 4}, False),
        ({"user_id": "u2", "ended_at": 5}, False),
        ({"user_id": "u1"}, False),
        ({}, False),
    ],
)
def test_all_conditions_must_hold(metadata, passes):
    assert Filter(user_id="u1", since=5).matches(metadata) is passes
