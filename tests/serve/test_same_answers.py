"""Ann's token gets the same answers, whether other people exist or not.

This finds what no list of leaks has: any value that depends on other people's data.
"""

import pytest
from pipelines import make_actions
from serve_server import token

from autoplay_rag import ChatTurn, SummaryPayload

OF_ANN = [
    make_actions("s1", "opened reports", "exported revenue", user="ann", at=1000.0),
    make_actions("s2", "paid an invoice", user="ann", at=2000.0),
    SummaryPayload("acme", "s1", "Exported the revenue report.", 0, 1500.0),
    ChatTurn("acme", "s2", "ann", "thread", "Where are invoices?", "Under billing.", [], 2500.0),
    make_actions("shared", "looked at prices", user="ann", at=3000.0),
]
OF_OTHERS = [
    make_actions("s5", "opened reports", "exported salaries", user="bob", at=1000.0),
    *(make_actions(f"t{n}", "paid an invoice", f"revenue {n}", user="bob") for n in range(30)),
    make_actions("shared", "revenue of bob", user="bob", at=4000.0),
    make_actions("shared", "revenue of somebody", at=9000.0),
    SummaryPayload("acme", "shared", "Bob took the revenue.", 0, 9500.0),
    make_actions("s6", "revenue in none", at=5000.0),
]
ASKED = [
    ("POST", "/v1/search", {"query": "revenue", "k": 100, "mode": mode, **more})
    for mode in ("text", "dense", "hybrid")
    for more in ({}, {"session_id": "s1"}, {"session_id": "t1"}, {"session_id": "shared"})
] + [
    ("POST", "/v1/search/sessions", {"query": "revenue", "k": 100, "mode": "text"}),
    ("POST", "/v1/search/sessions", {"query": "prices", "k": 100, "session_id": "shared"}),
    ("GET", "/v1/sessions", None),
    ("GET", "/v1/sessions?matching=revenue", None),
    ("GET", "/v1/sessions?without=revenue", None),
    ("GET", "/v1/sessions?page=app.test", None),
    ("GET", "/v1/sessions?since=1200", None),
    ("GET", "/v1/sessions/s1", None),
    ("GET", "/v1/sessions/shared", None),
    ("GET", "/v1/sessions/t1", None),
    ("GET", "/v1/sessions/s6", None),
    ("GET", "/v1/live?session_id=s1", None),
    ("GET", "/v1/live?session_id=t1", None),
    ("GET", "/v1/live?session_id=s6", None),
    ("POST", "/v1/context", {"query": "revenue", "session_id": "t1"}),
    ("POST", "/v1/context", {"query": "revenue", "session_id": "s6"}),
]


async def answers(serve, journal, payloads):
    async with serve(journal=journal) as running:
        for payload in payloads:
            await running.pipeline.accept(payload)
        await running.pipeline.drain()
        async with running.client(token(user_id="ann")) as client:
            found = [await client.request(method, path, json=body) for method, path, body in ASKED]
            return [(one.status_code, comparable(one.json())) for one in found]


def comparable(answer):
    """All that must not depend on other people: not the watermark, nor the order of hits.

    The session that others used, too, is left out of lists, and what is live in it is theirs.
    """
    answer.pop("watermark", None)
    for event in answer.get("events", []):
        event.pop("seq")
    if "hits" in answer:
        scores = [hit.pop("score") for hit in answer["hits"]]
        for hit in answer["hits"]:
            hit["hits"] = sorted(one["text"] for one in hit.get("hits", []))
        return scores, sorted(map(str, answer.pop("hits"))), answer
    if "session" in answer:
        return [event["text"] for event in (answer["session"] or {"events": []})["events"]]
    if "text" in answer and "events" not in answer:
        return {line for line in answer["text"].split("\n") if line.startswith("[")}
    if "sessions" in answer:
        answer["sessions"] = [one for one in answer["sessions"] if one["session_id"] != "shared"]
        answer.pop("total")
    return answer


@pytest.mark.parametrize("first", ["ann", "others"])
async def test_the_answers_are_the_same(serve, tmp_path, first):
    other = make_actions("s1", "revenue of another product", user="ann", at=1.0)
    other.product_id = "umbrella"
    others = [*OF_OTHERS, other]
    alone = await answers(serve, tmp_path / "alone.db", OF_ANN)
    both = OF_ANN + others if first == "ann" else others + OF_ANN
    among = await answers(serve, tmp_path / "among.db", both)
    for asked, one, two in zip(ASKED, alone, among, strict=True):
        assert one == two, asked
