from __future__ import annotations

import math
import re
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag.errors import ConfigurationError
from autoplay_rag.ingest.pipeline import IngestPipeline
from autoplay_rag.live import LiveEvent, LiveSession, LiveSessions
from autoplay_rag.payloads import ActionsPayload, ChatTurn, Payload, SlimAction, SummaryPayload
from autoplay_rag.stores import MemoryStore


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def clicks(
    *texts: str,
    session: str | None = "s1",
    user: str | None = "u1",
    product: str = "acme",
    conversation: str | None = None,
    at: float = 0.0,
) -> ActionsPayload:
    actions = [
        SlimAction(text, f"User {text}", "https://app.test/:id", i, "click", at + i if at else 0.0)
        for i, text in enumerate(texts)
    ]
    return ActionsPayload(
        product, session, user, None, actions, len(actions), at, conversation_id=conversation
    )


def texts(session: LiveSession | None) -> list[str]:
    assert session is not None
    return [event.text for event in session.events]


def test_a_session_is_found_by_each_of_its_ids(clock: Clock) -> None:
    live = LiveSessions(clock=clock)
    live.add(clicks("opened reports", conversation="c1"))
    for ids in ({"session_id": "s1"}, {"user_id": "u1"}, {"conversation_id": "c1"}):
        assert texts(live.get(**ids)) == ["opened reports"]
        assert texts(live.get(**ids, product_id="acme")) == ["opened reports"]
        assert live.get(**ids, product_id="other") is None
    assert live.get(session_id="s2") is None


def test_ids_that_do_not_belong_together_find_nothing(clock: Clock) -> None:
    live = LiveSessions(clock=clock)
    live.add(clicks("a", session="s1", user="u1"))
    live.add(clicks("b", session="s2", user="u2"))
    live.add(clicks("c", session="s3", user=None))
    assert texts(live.get(session_id="s1", user_id="u1")) == ["a"]
    assert live.get(session_id="s1", user_id="u2") is None
    assert live.get(session_id="s3", user_id="u1") is None, "its person is not known"


def test_asking_for_nobody_is_an_error(clock: Clock) -> None:
    with pytest.raises(ConfigurationError, match="needs a session_id"):
        LiveSessions(clock=clock).get(product_id="acme")


@pytest.mark.parametrize("name", ["max_sessions", "max_actions", "max_age"])
def test_bounds_must_be_above_0(name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        LiveSessions(**{name: 0})


def test_of_several_sessions_the_one_active_last_is_found(clock: Clock) -> None:
    live = LiveSessions(clock=clock)
    live.add(clicks("first", session="s1"))
    live.add(clicks("second", session="s2"))
    live.add(clicks("third", session="s1"))
    found = live.get(user_id="u1")
    assert found is not None
    assert found.session_id == "s1"
    assert [session.session_id for session in live.sessions()] == ["s1", "s2"]


def test_sessions_are_selected_by_person_session_and_product(clock: Clock) -> None:
    live = LiveSessions(clock=clock)
    for session, user, product in (
        ("s1", "u1", "acme"),
        ("s2", "u2", "acme"),
        ("s3", "u1", "acme"),
        ("s3", "u1", "other"),
        ("s4", None, "acme"),
    ):
        live.add(clicks("opened", session=session, user=user, product=product))
    live.add(clicks("again", session="s1"))

    def found(**wanted: Any) -> list[tuple[str, str]]:
        return [(one.session_id, one.product_id) for one in live.sessions(**wanted)]

    assert found(user_id="u1") == [("s1", "acme"), ("s3", "other"), ("s3", "acme")]
    assert found(user_id="u1", product_id="acme") == [("s1", "acme"), ("s3", "acme")]
    assert found(limit=1, user_id="u1") == [("s1", "acme")]
    assert found(session_id="s3") == [("s3", "other"), ("s3", "acme")]
    assert found(session_id="s3", user_id="u2") == []
    assert found(user_id="nobody") == []
    assert found(product_id="other") == [("s3", "other")]


def test_a_session_without_events_hides_no_older_one(clock: Clock) -> None:
    live = LiveSessions(clock=clock)
    live.add(clicks("first", session="s1"))
    live.add(clicks(session="s2"))
    assert texts(live.get(user_id="u1")) == ["first"]
    assert live.get(session_id="s2") is None


def test_the_same_session_id_in_two_products_is_two_sessions(clock: Clock) -> None:
    live = LiveSessions(clock=clock)
    live.add(clicks("here", product="acme"))
    live.add(clicks("there", product="other"))
    assert texts(live.get(session_id="s1", product_id="acme")) == ["here"]
    assert texts(live.get(session_id="s1", product_id="other")) == ["there"]


def test_a_visit_that_is_identified_later_is_found_by_its_person(clock: Clock) -> None:
    live = LiveSessions(clock=clock)
    live.add(clicks("anonymous", user=None))
    assert live.get(user_id="u1") is None
    live.add(clicks("known"))
    assert texts(live.get(user_id="u1")) == ["anonymous", "known"]


def test_an_action_can_name_the_person(clock: Clock) -> None:
    live = LiveSessions(clock=clock)
    payload = clicks("a", user=None)
    payload.actions[0].user_id = "u7"
    payload.actions[0].conversation_id = "c7"
    live.add(payload)
    assert texts(live.get(user_id="u7", conversation_id="c7")) == ["a"]


def test_a_session_that_changes_hands_starts_anew(clock: Clock) -> None:
    live = LiveSessions(clock=clock)
    live.add(clicks("hers", user="u1", conversation="c1"))
    live.add(clicks("his", user="u2"))
    assert texts(live.get(session_id="s1")) == ["his"]
    assert live.get(user_id="u1") is None
    assert live.get(conversation_id="c1") is None


def test_a_new_conversation_takes_the_place_of_the_old(clock: Clock) -> None:
    live = LiveSessions(clock=clock)
    live.add(clicks("a", conversation="c1"))
    live.add(clicks("b", conversation="c2"))
    assert live.get(conversation_id="c1") is None
    assert texts(live.get(conversation_id="c2")) == ["a", "b"]


def test_sessions_without_an_id_are_passed_over(clock: Clock) -> None:
    live = LiveSessions(clock=clock)
    live.add(clicks("a", session=None))
    assert len(live) == 0


def test_summaries_and_chat_turns_stand_in_their_session(clock: Clock) -> None:
    live = LiveSessions(clock=clock)
    live.add(clicks("opened reports"))
    live.add(SummaryPayload("acme", "s1", "Looked at reports.", 1))
    live.add(SummaryPayload("acme", "s1", " "))
    live.add(ChatTurn("acme", "s1", "u1", "c1", "Where is export?", "Under Reports."))
    session = live.get(conversation_id="c1")
    assert session is not None
    assert [event.kind for event in session.events] == ["actions", "summary", "chat"]
    assert session.events[2].text == "asked: Where is export? — was answered: Under Reports."


async def test_it_takes_what_a_client_calls_back_with(clock: Clock) -> None:
    live = LiveSessions(clock=clock)
    await live.on_actions(clicks("a"))
    await live.on_summary(SummaryPayload("acme", "s1", "b"))
    assert texts(live.get(session_id="s1")) == ["a", "b"]


# -- bounds ------------------------------------------------------------------------------------


def test_only_the_latest_sessions_stay(clock: Clock) -> None:
    live = LiveSessions(max_sessions=2, clock=clock)
    for name in ("s1", "s2", "s1", "s3"):
        live.add(clicks(name, session=name, user=f"u-{name}"))
    assert [session.session_id for session in live.sessions()] == ["s3", "s1"]
    assert live.get(user_id="u-s2") is None


def test_only_the_latest_actions_stay(clock: Clock) -> None:
    live = LiveSessions(max_actions=3, clock=clock)
    live.add(clicks("a"))
    live.add(clicks("b", "c", "d", "e"))
    assert texts(live.get(session_id="s1")) == ["c", "d", "e"]


def test_what_is_too_old_is_forgotten(clock: Clock) -> None:
    live = LiveSessions(max_age=60, clock=clock)
    live.add(clicks("early"))
    clock.now += 40
    live.add(clicks("late"))
    clock.now += 40
    assert texts(live.get(session_id="s1")) == ["late"]
    clock.now += 40
    assert live.get(session_id="s1") is None
    assert live.sessions() == []
    live.add(clicks("other", session="s2"))
    assert len(live) == 1, "the silent session's memory is free again"


def test_one_endless_text_does_not_fill_the_memory(clock: Clock) -> None:
    live = LiveSessions(clock=clock)
    payload = clicks("x" * 10_000_000)
    payload.actions[0].canonical_url = "https://app.test/" + "y" * 10_000_000
    live.add(payload)
    live.add(SummaryPayload("acme", "s1", "x" * 10_000_000))
    live.add(ChatTurn("acme", "s1", question="x" * 10_000_000, answer="y" * 10_000_000))
    session = live.get(session_id="s1")
    assert session is not None
    assert max(len(event.text) + len(event.url) for event in session.events) < 3_000


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcd"),
            st.sampled_from(["u1", "u2", None]),
            st.sampled_from(["c1", "c2", None]),
            st.floats(0, 100),
        ),
        max_size=60,
    )
)
def test_the_index_knows_the_sessions_and_nothing_else(
    steps: list[tuple[str, str | None, str | None, float]],
) -> None:
    clock = Clock()
    live = LiveSessions(max_sessions=3, max_actions=4, max_age=150, clock=clock)
    for session, user, conversation, wait in steps:
        clock.now += wait
        live.add(clicks("did", session=session, user=user, conversation=conversation))
        kept = live.sessions()
        assert len(live) <= 3
        assert all(len(s.events) <= 4 for s in kept)
        for found in kept:
            ids = {"session_id": found.session_id}
            ids |= {"user_id": found.user_id} if found.user_id else {}
            ids |= {"conversation_id": found.conversation_id} if found.conversation_id else {}
            assert live.get(**ids) == found
    clock.now += 1000
    live.add(clicks("last", session="z", user=None))
    assert list(live._index) == [("session_id", "z")]


def test_it_may_be_read_from_another_thread_meanwhile(clock: Clock) -> None:
    live = LiveSessions(max_sessions=20, clock=clock)
    stop = threading.Event()
    failed: list[BaseException] = []

    def read() -> None:
        try:
            while not stop.is_set():
                live.sessions()
                live.get(user_id="u1")
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            failed.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(3_000):
        live.add(clicks("a", session=f"s{number % 40}", user=f"u{number % 3}"))
    stop.set()
    reader.join()
    assert failed == []


# -- history -----------------------------------------------------------------------------------


def test_it_is_filled_from_a_history(clock: Clock) -> None:
    live = LiveSessions(max_age=600, clock=clock)
    for age, session in ((700, "old"), (500, "s1"), (300, "s2"), (100, "s1"), (50, "s3")):
        payload = clicks(f"{age} ago", session=session, user=f"u-{session}")
        live.add(payload, at=clock.now - age)
    assert [session.session_id for session in live.sessions()] == ["s3", "s1", "s2"]
    assert texts(live.get(session_id="s1")) == ["500 ago", "100 ago"]
    assert live.get(session_id="old") is None
    assert len(live) == 3
    clock.now += 200
    assert texts(live.get(session_id="s1")) == ["100 ago"]
    live.add(clicks("now", session="s2", user="u-s2"))
    assert [session.session_id for session in live.sessions()] == ["s2", "s3", "s1"]


@given(st.permutations(range(8)), st.integers(0, 8))
def test_the_order_in_which_a_history_comes_makes_no_difference(order: list[int], new: int) -> None:
    clock = Clock()
    live = LiveSessions(clock=clock)
    for position, step in enumerate(order):
        if position == new:
            live.add(clicks("now", session="s0"))
        live.add(clicks(f"{step}", session=f"s{step % 3}"), at=clock.now - 100 + step)
    active = [session.session_id for session in live.sessions()]
    if new < len(order):
        assert active == ["s0", "s1", "s2"]
        assert texts(live.get(session_id="s0")) == ["0", "3", "6", "now"]
    else:
        assert active == ["s1", "s0", "s2"]
    assert texts(live.get(session_id="s1")) == ["1", "4", "7"]
    found = live.get(user_id="u1")
    assert found is not None
    assert found.session_id == active[0]


def test_a_late_payload_shows_nothing_of_another_person(clock: Clock) -> None:
    live = LiveSessions(clock=clock)
    live.add(clicks("hers", user="u2", conversation="c2"))
    before = clock.now - 10
    live.add(clicks("his", user="u1", conversation="c1"), at=before)
    live.add(clicks("whose?", user=None), at=before + 1)
    live.add(SummaryPayload("acme", "s1", "His, too."), at=before + 2)
    live.add(clicks("hers before", user="u2", conversation="c1"), at=before + 3)
    assert texts(live.get(session_id="s1")) == ["hers before", "hers"]
    assert live.get(user_id="u1") is None
    assert live.get(conversation_id="c1") is None
    assert live.get(conversation_id="c2") is not None


def test_a_late_payload_may_name_the_person(clock: Clock) -> None:
    live = LiveSessions(clock=clock)
    live.add(clicks("then", user=None))
    live.add(clicks("before", user="u1", conversation="c1"), at=clock.now - 10)
    assert texts(live.get(user_id="u1", conversation_id="c1")) == ["before", "then"]


def test_a_late_payload_stays_within_the_bounds(clock: Clock) -> None:
    live = LiveSessions(max_sessions=2, max_actions=3, clock=clock)
    live.add(clicks("a", "b", session="s1"))
    live.add(clicks("c", session="s2"))
    live.add(clicks("x", "y", "z", session="s1"), at=clock.now - 10)
    live.add(clicks("early", session="s3"), at=clock.now - 20)
    assert texts(live.get(session_id="s1")) == ["z", "a", "b"]
    assert {session.session_id for session in live.sessions()} == {"s1", "s2"}


def test_a_time_in_the_future_counts_as_now(clock: Clock) -> None:
    live = LiveSessions(clock=clock)
    live.add(clicks("skewed", session="s1"), at=clock.now + 10_000)
    live.add(clicks("later", session="s2"))
    assert [session.session_id for session in live.sessions()] == ["s2", "s1"]
    live.add(clicks("never"), at=float("nan"))
    assert texts(live.get(session_id="s1")) == ["skewed"]


def test_a_clock_that_is_set_back_loses_nothing(clock: Clock) -> None:
    live = LiveSessions(clock=clock)
    live.add(clicks("first", user="u1"))
    clock.now -= 30
    live.add(clicks("second", user=None))
    live.add(SummaryPayload("acme", "s1", "Third."))
    assert texts(live.get(session_id="s1")) == ["first", "second", "Third."]


# -- times -------------------------------------------------------------------------------------


def test_a_replayed_recording_happens_now_with_its_own_distances(clock: Clock) -> None:
    live = LiveSessions(clock=clock)
    live.add(clicks("a", "b", "c", at=1_600_000_000.0))
    session = live.get(session_id="s1")
    assert session is not None
    assert [event.at - clock.now for event in session.events] == [-2, -1, 0]


def test_actions_without_times_happened_when_they_came(clock: Clock) -> None:
    live = LiveSessions(clock=clock)
    live.add(clicks("a", "b"))
    session = live.get(session_id="s1")
    assert session is not None
    assert [event.at for event in session.events] == [clock.now, clock.now]


@pytest.mark.parametrize(
    "wrong", [1_600_000_000_000.0, 1.6e18, 4_000_000_000.0, 1.0, -1.0], ids="{:g}".format
)
def test_a_wrong_clock_changes_nothing_for_other_sessions(clock: Clock, wrong: float) -> None:
    live = LiveSessions(clock=clock)
    live.add(clicks("a", session="before", at=1_600_000_000.0))
    clock.now += 10
    live.add(clicks("x", "y", session="wrong", user="u2", at=wrong))
    clock.now += 10
    live.add(clicks("b", session="after", at=1_600_000_020.0))
    assert [session.session_id for session in live.sessions()] == ["after", "wrong", "before"]
    for session, age in (("before", 20), ("after", 0)):
        found = live.get(session_id=session)
        assert found is not None
        assert [clock.now - event.at for event in found.events] == [age]
    users = live.get(user_id="u1")
    assert users is not None
    assert users.session_id == "after"


@pytest.mark.parametrize(
    ("times", "before"),
    [
        ([1_600_000_000.0, 1_600_000_005_000.0], [5, 0]),
        ([1_600_000_000_000.0, 1_600_000_005_000.0], [5, 0]),
        ([1_600_000_000_000_000.0, 1_600_000_005.0], [5, 0]),
        ([1_600_000_000.0, 1_600_000_005.0, 4_000_000_000.0], [5, 0, 0]),
        ([4_000_000_000.0, 1_600_000_000.0, 1_600_000_005.0], [5, 5, 0]),
        ([1_600_000_000.0, 1.0, 1_600_000_005.0], [5, 5, 0]),
        ([1_600_000_000.0, -1.0, 1_600_000_005.0], [5, 5, 0]),
        ([1.0, 1_600_000_000.0], [0, 0]),
        ([1_600_000_000.0, math.inf], [0, 0]),
    ],
    ids=str,
)
def test_a_wrong_clock_hides_no_action_of_its_own_payload(
    clock: Clock, times: list[float], before: list[float]
) -> None:
    live = LiveSessions(clock=clock)
    live.add(clicks_at(*times))
    session = live.get(session_id="s1")
    assert session is not None
    assert [clock.now - event.at for event in session.events] == before


# -- text --------------------------------------------------------------------------------------


def session_of(*events: LiveEvent, seen_at: float = 100.0) -> LiveSession:
    return LiveSession("acme", "s1", "u1", None, events, seen_at)


def test_render_tells_what_happened_when_and_where() -> None:
    session = session_of(
        LiveEvent(100.0, "actions", "opened Reports", "https://app.test/reports"),
        LiveEvent(880.0, "actions", "clicked  Export\nnow"),
        seen_at=925.0,
    )
    assert session.render() == (
        "14 min ago: opened Reports (https://app.test/reports)\n45 s ago: clicked Export now"
    )
    old = session_of(LiveEvent(0.0, "actions", "left"), seen_at=3 * 3600)
    assert old.render() == "3 h ago: left"


def test_render_keeps_the_newest_that_fit() -> None:
    session = session_of(*(LiveEvent(100.0, "actions", f"did {n:02}") for n in range(50)))
    assert session.render(35) == "0 s ago: did 48\n0 s ago: did 49"
    assert session.render(5) == "0 s …"
    assert session.render(0) == ""
    assert session_of().render() == ""


def test_render_shows_no_invisible_text_and_can_escape() -> None:
    hidden = "".join(chr(0xE0000 + ord(c)) for c in "obey")
    session = session_of(LiveEvent(100.0, "actions", f"sa\u200bw{hidden} </data>\x00", "u<v>"))
    assert session.render() == "0 s ago: saw </data> (u<v>)"
    assert session.render(escape=True) == "0 s ago: saw &lt;/data&gt; (u&lt;v&gt;)"


@given(
    st.lists(st.text(max_size=40) | st.just("<<>>"), max_size=10),
    st.integers(0, 200),
    st.booleans(),
)
def test_render_never_exceeds_its_length(found: list[str], length: int, escape: bool) -> None:
    session = session_of(*(LiveEvent(50.0, "actions", text, text) for text in found))
    rendered = session.render(length, escape=escape)
    assert len(rendered) <= length
    assert not (escape and {"<", ">"} & set(rendered))
    assert len(rendered.splitlines()) <= len(found), "no text passes for several lines"
    live = LiveSessions(clock=Clock())
    for number, text in enumerate(found):
        live.add(clicks(text or "x", session=f"s{number}"))
    assert len(live.render(length)) <= length


def test_last_narrows_by_age_number_and_kind() -> None:
    session = session_of(
        LiveEvent(10.0, "actions", "a"),
        LiveEvent(80.0, "chat", "b"),
        LiveEvent(90.0, "actions", "c"),
    )
    assert texts(session.last(seconds=30)) == ["b", "c"]
    assert texts(session.last(kinds=("actions",))) == ["a", "c"]
    assert texts(session.last(events=2)) == ["b", "c"]
    assert texts(session.last(events=5)) == ["a", "b", "c"]
    assert texts(session.last(events=0)) == []
    assert texts(session.last(seconds=30, events=1, kinds=("chat",))) == ["b"]


def test_render_of_all_puts_each_session_under_its_id(clock: Clock) -> None:
    live = LiveSessions(clock=clock)
    live.add(clicks("a", session="s1"))
    live.add(clicks("b", session="s2"))
    assert live.render() == (
        "Session s2\n0 s ago: b (https://app.test/:id)\n\n"
        "Session s1\n0 s ago: a (https://app.test/:id)"
    )
    assert repr(live) == "<LiveSessions of 2 sessions>"


# -- in the pipeline ---------------------------------------------------------------------------


class OneVector:
    model = "one-vector"

    async def embed(self, texts: list[str]) -> list[list[float]]:
        return [[1.0, 0.0] for _ in texts]


async def test_the_pipeline_shows_what_it_accepted_redacted_and_once() -> None:
    def redact(payload: Payload) -> Payload:
        if not isinstance(payload, ActionsPayload):
            return payload
        redacted = ActionsPayload.from_dict(payload.to_dict())
        for action in redacted.actions:
            action.description = action.description.replace("secret", "***")
        return redacted

    async with IngestPipeline(
        MemoryStore(),
        OneVector(),
        select=lambda payload: payload.session_id != "bot",
        redact=redact,
    ) as pipeline:
        first = clicks("typed secret", at=100.0)
        await pipeline.on_actions(first)
        await pipeline.on_actions(first)
        await pipeline.on_actions(clicks("crawled", session="bot"))
        await pipeline.on_chat(ChatTurn("acme", "s1", question="What now?", answer="Save."))
        assert texts(pipeline.live.get(session_id="s1")) == [
            "typed ***",
            "asked: What now? — was answered: Save.",
        ]
        assert pipeline.live.get(session_id="bot") is None


async def test_the_pipeline_takes_sessions_made_elsewhere(clock: Clock) -> None:
    live = LiveSessions(clock=clock)
    async with IngestPipeline(MemoryStore(), OneVector(), live=live) as pipeline:
        await pipeline.on_actions(clicks("a"))
        assert pipeline.live is live
    assert texts(live.get(session_id="s1")) == ["a"]


def test_a_session_is_a_table_in_a_notebook_with_its_text_escaped() -> None:
    events = (LiveEvent(95.0, "actions", "<script>x</script>", "https://a.test/?a=1&b=2"),)
    html = LiveSession("acme", "s1", "u1", None, events, seen_at=100.0)._repr_html_()
    assert "5 s ago" in html
    assert "&lt;script&gt;x&lt;/script&gt;" in html
    assert "a=1&amp;b=2" in html
    assert "<script" not in html


async def test_what_cannot_be_shown_is_stored_all_the_same() -> None:
    def redact(payload: ActionsPayload) -> ActionsPayload:
        payload.actions[0].timestamp_start = None
        return payload

    async with IngestPipeline(MemoryStore(), OneVector(), redact=redact) as pipeline:
        await pipeline.on_actions(clicks("a", "b", at=5.0))
        await pipeline.drain()
        assert pipeline.ledger.stored == 1


async def test_a_redact_that_returns_no_payload_makes_a_dead_letter() -> None:
    async with IngestPipeline(MemoryStore(), OneVector(), redact=lambda _: None) as pipeline:
        await pipeline.on_actions(clicks("a"))
        assert pipeline.ledger.dead == 1


# Ages never jump


def ages(text: str) -> list[float]:
    units = {"s": 1, "min": 60, "h": 3600}
    return [
        int(number) * units[unit]
        for number, unit in re.findall(r"^(\d+) (s|min|h) ago", text, re.MULTILINE)
    ]


@pytest.mark.parametrize(
    "payloads",
    [
        # A fast replay: payloads that span minutes arrive within milliseconds.
        [[0.0, 60.0], [100.0, 140.0], [150.0, 700.0]],
        # Actions of one payload out of order.
        [[10.0, 5.0, 30.0, 20.0]],
        # No times at the beginning, in the middle and at the end.
        [[0.0, 500.0], [0.0, 600.0, 0.0, 650.0, 0.0]],
        # The same minutes again.
        [[1.0, 90.0], [1.0, 90.0], [1.0, 90.0]],
    ],
)
def test_ages_go_down_from_the_oldest_to_the_newest(payloads: list[list[float]]) -> None:
    now = 1_000_000.0
    live = LiveSessions(clock=lambda: now)
    for n, times in enumerate(payloads):
        now += 0.05
        actions = [
            SlimAction(f"{n}.{m}", timestamp_start=time and 1000.0 + time, type="click")
            for m, time in enumerate(times)
        ]
        live.add(ActionsPayload("acme", "s1", "u1", actions=actions))
    session = live.get(session_id="s1")
    assert session is not None
    told = session.render()
    assert ages(told) == sorted(ages(told), reverse=True)
    assert len(ages(told)) == sum(map(len, payloads))
    names = [f"{n}.{m}" for n, times in enumerate(payloads) for m in range(len(times))]
    assert re.findall(r"\d\.\d", told) == names, "oldest first, as they came"
    assert ages(live.render().partition("\n")[2]) == ages(told)


@given(st.lists(st.floats(-1e6, 1e6), max_size=20), st.integers(0, 400))
def test_ages_never_jump_within_one_rendering(times: list[float], length: int) -> None:
    session = session_of(*(LiveEvent(at, "actions", "did") for at in times), seen_at=1e6)
    for shown in (session.render(), session.render(length)):
        assert ages(shown) == sorted(ages(shown), reverse=True)


def test_the_time_between_two_clicks_is_kept() -> None:
    now = 1_000.0
    live = LiveSessions(clock=lambda: now)
    live.add(clicks_at(100.0, 120.0))
    now = 1_060.0
    live.add(clicks_at(150.0, 190.0))
    session = live.get(session_id="s1")
    assert session is not None
    assert ages(session.render()) == [80, 60, 40, 0]


def clicks_at(*times: float) -> ActionsPayload:
    actions = [SlimAction("x", timestamp_start=time, type="click") for time in times]
    return ActionsPayload("acme", "s1", "u1", actions=actions)
