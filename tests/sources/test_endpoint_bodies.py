"""Whatever a pull endpoint answers, one bad value costs itself alone, and nothing crashes."""

import json

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from autoplay_rag.errors import TransientError
from autoplay_rag.sources.activity_endpoint import ActivityEndpoint, Validators, can_be_asked
from autoplay_rag.sources.watched import PulledUser

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
fields = st.sampled_from(
    ["type", "title", "description", "timestamp_start", "timestamp_end", "raw_url", "index", "x"]
)
actions = st.lists(st.dictionaries(fields, values, max_size=6) | values, max_size=6)
answers = st.fixed_dictionaries(
    {}, optional={"actions": actions | values, "as_of": values, "user_id": values, "count": values}
)
bodies = answers.map(lambda found: json.dumps(found).encode()) | st.binary(max_size=60)


class Answers(httpx.AsyncBaseTransport):
    def __init__(self, body):
        self.body = body

    async def handle_async_request(self, request):
        return httpx.Response(200, content=self.body)


@given(bodies)
@example(b'{"actions": [{"timestamp_start": 1e400}], "as_of": 1e400}')
@example(b'{"actions": [{"title": "\\ud800", "timestamp_start": 5}]}')
@example(b"[" * 100_000)
async def test_any_body_gives_actions_or_a_failure_that_is_retried(body):
    endpoint = ActivityEndpoint("http://a.test", "acme", "", timeout=5)
    try:
        found = await endpoint.ask(Answers(body), "ann", Validators())
    except TransientError:
        return
    user = PulledUser("acme", "ann")
    taken = user.take(found, now=1e9, hold_back=0.0, most=50)
    user.confirm(taken)
    total = sum(payload.count for payload in taken.payloads)
    assert total <= len(found.actions)
    assert user.take(found, now=1e9, hold_back=0.0, most=50).payloads == []


async def test_one_bad_action_costs_itself_alone():
    good = {"type": "click", "title": "Export", "timestamp_start": 5.0}
    body = json.dumps({"actions": [7, good, {"title": {}}, None, {**good, "title": "Save"}]})
    endpoint = ActivityEndpoint("http://a.test", "acme", "", timeout=5)
    found = await endpoint.ask(Answers(body.encode()), "ann", Validators())
    assert [action.title for action in found.actions if action.title] == ["Export", "Save"]


@pytest.mark.parametrize("user", ["", ".", "..", "x" * 501, "\ud800"])
def test_ids_that_cannot_be_part_of_an_address(user):
    assert not can_be_asked(user)


@given(st.text(min_size=1, max_size=20).filter(can_be_asked))
async def test_any_other_id_is_one_part_of_the_path(user):
    seen = []

    class Notes(Answers):
        async def handle_async_request(self, request):
            seen.append(request.url.raw_path)
            return await super().handle_async_request(request)

    endpoint = ActivityEndpoint("http://a.test/mcp/", "ac/me", "", timeout=5)
    await endpoint.ask(Notes(b"{}"), user, Validators())
    parts = seen[0].decode().split("/")
    assert parts[:3] == ["", "users", "ac%2Fme"]
    assert parts[4:] == ["live-activity"]
