"""The pull endpoint of LocalConnector."""

import asyncio

import httpx
import pytest

from autoplay_rag.connector.recording import RecordingWriter
from autoplay_rag.devserver import LocalConnector
from autoplay_rag.devserver.activity import Activity
from autoplay_rag.devserver.pace import Pace
from autoplay_rag.devserver.source import as_line, open_source
from autoplay_rag.payloads import ActionsPayload, SlimAction, SummaryPayload


def clicks(user, *titles, at=1000.0, session="s1"):
    actions = [
        SlimAction(title, f"User clicked {title}", "https://a.test/p", n, "click", at + n, at + n)
        for n, title in enumerate(titles)
    ]
    return ActionsPayload("acme", session, user, actions=actions)


async def fetch(connector, path, **headers):
    async with httpx.AsyncClient(timeout=30) as http:
        return await http.get(connector.pull_url + path, headers=headers)


async def titles(connector, user, limit=""):
    answer = await fetch(connector, f"/users/acme/{user}/live-activity{limit}")
    assert answer.status_code == 200
    found = answer.json()
    assert found["count"] == len(found["actions"])
    assert (found["product_id"], found["as_of"] > 1e9) == ("acme", True)
    return [action["title"] for action in found["actions"]]


async def test_a_user_has_what_the_recording_and_send_have_sent_each_action_once():
    recording = [clicks("ann", "A", "B"), clicks("bob", "X"), SummaryPayload("acme", "s1", "Both.")]
    async with LocalConnector(recording) as connector:
        assert await titles(connector, "ann") == ["A", "B"]
        await connector.send(clicks("ann", "C", at=2000.0))
        await connector.send(clicks("ann", "C", at=2000.0))  # a repeated delivery
        await connector.send(b"no payload")
        await connector.send(clicks(None, "Anonymous"))
        assert await titles(connector, "ann") == ["A", "B", "C"]
        assert await titles(connector, "ann", "?limit=2") == ["B", "C"]
        assert await titles(connector, "ann", "?limit=0") == ["A", "B", "C"]
        assert await titles(connector, "bob") == ["X"]
        assert await titles(connector, "nobody") == []


async def test_requests_at_once_play_the_recording_once(tmp_path):
    path = tmp_path / "visits.jsonl"
    with RecordingWriter(path) as writer:
        for n in range(2000):
            writer.write(clicks(f"u{n % 20}", f"c{n}", at=1000.0 + n))
    async with LocalConnector(path) as connector:
        found = await asyncio.gather(*(titles(connector, f"u{n}") for n in range(20)))
    assert [len(own) for own in found] == [50] * 20


async def test_the_last_fifty_actions_in_the_order_of_their_times():
    async with LocalConnector([], product_id="acme") as connector:
        for n in reversed(range(70)):
            await connector.send(clicks("ann", f"c{n}", at=1000.0 + n))
        assert await titles(connector, "ann") == [f"c{n}" for n in range(20, 70)]


async def test_fields_are_those_of_the_endpoint():
    async with LocalConnector([clicks("a/b", "A")]) as connector:
        answer = (await fetch(connector, "/users/acme/a%2Fb/live-activity")).json()
    assert answer["user_id"] == "a/b"
    assert set(answer["actions"][0]) == {
        "type", "title", "description", "timestamp_start", "timestamp_end", "raw_url",
        "canonical_url", "index",
    }  # fmt: skip


async def test_unchanged_answers():
    async with LocalConnector([clicks("ann", "A")]) as connector:
        path = "/users/acme/ann/live-activity"
        tag = (await fetch(connector, path)).headers["etag"]
        again = await fetch(connector, path, **{"If-None-Match": tag})
        assert (again.status_code, again.content) == (304, b"")
        await connector.send(clicks("ann", "B", at=2000.0))
        assert (await fetch(connector, path, **{"If-None-Match": tag})).status_code == 200


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/users/acme/ann/live-activity", {}, 401),
        ("/users/acme/ann/live-activity", {"Authorization": "Bearer wrong"}, 401),
        ("/users/other/ann/live-activity", {"Authorization": "Bearer key"}, 403),
        ("/users/acme/ann/live-activity?limit=x", {"Authorization": "Bearer key"}, 422),
        ("/users/acme/ann/live-activity", {"Authorization": "Bearer key"}, 200),
        ("/users/live-activity", {"Authorization": "Bearer key"}, 404),
    ],
)
async def test_statuses(path, headers, status):
    async with LocalConnector([clicks("ann", "A")], token="key") as connector:
        assert (await fetch(connector, path, **headers)).status_code == status


async def test_a_paced_recording_is_sent_over_time_and_forgotten_after_a_day():
    now = [0.0]
    lines = [as_line(clicks("ann", f"c{n}", at=1000.0 + n)) for n in range(10)]
    activity = Activity(open_source(lines), Pace(1.0), lambda: now[0])

    async def found():
        answer, _ = await activity.answer("acme", "ann", 0)
        return answer["count"]

    assert await found() == 1
    now[0] = 4.0
    assert await found() == 5
    now[0] = 86_401.0
    assert await found() == 9  # the first has expired, and five came only now
    now[0] = 200_000.0
    assert await found() == 0


async def test_memory_of_one_user_is_bounded_though_nobody_pulls():
    activity = Activity(open_source([]), Pace(None), lambda: 0.0)
    for n in range(1000):
        activity.add(as_line(clicks("ann", f"c{n}", at=1000.0 + n)))
    assert sum(len(kept) for kept in activity._users.values()) <= 100
    answer, _ = await activity.answer("acme", "ann", 0)
    assert [one["title"] for one in answer["actions"]] == [f"c{n}" for n in range(950, 1000)]
