from __future__ import annotations

import sys
from dataclasses import replace
from datetime import UTC, datetime

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag import Hit, SessionHit
from autoplay_rag.errors import MissingExtraError
from autoplay_rag.frames import to_frame
from autoplay_rag.payloads import ActionsPayload, ChatTurn, SlimAction, SummaryPayload
from autoplay_rag.search.hits import Hits, Matched
from autoplay_rag.search.timeline import SessionEvent, Sessions, SessionSummary, WholeSession

ACTIONS = ActionsPayload(
    product_id="acme",
    session_id="s1",
    user_id="u1",
    forwarded_at=1712345678.25,
    actions=[
        SlimAction("Home", "User visited Home", "https://a.test/", 0, "pageview", 1712345670.5),
        SlimAction(
            "Export", "User clicked Export", "https://a.test/r", 1, "click", email="a@b.test"
        ),
    ],
)


def test_an_action_is_a_row_with_what_its_payload_says():
    frame = to_frame([ACTIONS])
    assert frame["title"].tolist() == ["Home", "Export"]
    assert frame["index"].tolist() == [0, 1]
    assert frame["kind"].tolist() == ["actions"] * 2
    assert frame["user_id"].tolist() == ["u1"] * 2
    assert frame["text"][1] == "[1] click: User clicked Export — https://a.test/r"
    assert frame["email"][1] == "a@b.test"


def test_times_are_utc_and_unknown_ones_are_missing():
    frame = to_frame(ACTIONS)
    assert frame["forwarded_at"][0] == pd.Timestamp("2024-04-05 19:34:38.25", tz="UTC")
    assert frame["started_at"][0] == datetime(2024, 4, 5, 19, 34, 30, 500000, UTC)
    assert pd.isna(frame["started_at"][1])
    assert pd.isna(frame["ended_at"][0])


def test_summaries_and_chat_turns_are_a_row_each_beside_actions():
    frame = to_frame(
        [
            SummaryPayload("acme", "s1", "Exported a report.", 2, 1.0),
            ChatTurn(session_id="s1", question="Where?", answer="There."),
            ACTIONS,
            ActionsPayload(session_id="s2"),
        ]
    )
    assert frame["kind"].tolist() == ["summary", "chat", "actions", "actions"]
    assert frame["text"][0] == "Exported a report."
    assert frame["text"][1] == "User asked: Where?\nAssistant answered: There."
    assert frame["index"].isna().tolist() == [True, True, False, False]


def test_a_hit_is_a_row_with_its_metadata():
    hits = [
        Hit.of(
            "c1", "text", 0.5, {"session_id": "s1", "action_count": 3, "ended_at": 2.5, "tag": "x"}
        ),
        Hit.of("c2", "other", 0.25, {}),
    ]
    frame = to_frame(hits)
    assert frame[["id", "score", "text"]].to_numpy().tolist() == [
        ["c1", 0.5, "text"],
        ["c2", 0.25, "other"],
    ]
    assert frame["session_id"][0] == "s1"
    assert frame["action_count"][0] == 3
    assert frame["tag"][0] == "x"
    assert frame["ended_at"][0] == datetime(1970, 1, 1, 0, 0, 2, 500000, UTC)
    assert pd.isna(frame["ended_at"][1])
    assert to_frame(hits[0]).shape == (1, frame.shape[1])


def test_a_session_that_a_search_found_is_a_row_with_the_lines_that_answer():
    weak = Hit.of("c1", "text", 0.1, {}, matched=Matched("opened Reports"))
    best = Hit.of("c2", "text", 0.5, {}, matched=Matched("clicked Export"))
    found = SessionHit("s1", "acme", "u1", 1712345678.5, None, 0.5, [weak, best], "whole text")
    for each in (found, [found], Hits([found])):
        frame = to_frame(each)
        assert frame[["session_id", "user_id", "score", "matched", "text"]].to_numpy().tolist() == [
            ["s1", "u1", 0.5, "clicked Export", "whole text"]
        ]
        assert frame["started_at"][0] == datetime(2024, 4, 5, 19, 34, 38, 500_000, UTC)
        assert frame["ended_at"].isna().all()


@pytest.mark.parametrize("found", [[], [ActionsPayload()], iter(())])
def test_nothing_gives_an_empty_frame_with_the_columns(found):
    frame = to_frame(found)
    assert len(frame) == 0
    assert list(frame.columns) == list(to_frame(ACTIONS).columns)
    assert str(frame["forwarded_at"].dtype) == "datetime64[us, UTC]"


@pytest.mark.parametrize("found", [[{"a": 1}], [ACTIONS, Hit.of("c", "t", 0.1, {})], ["text"]])
def test_anything_else_is_refused(found):
    with pytest.raises(TypeError, match="takes payloads, hits, sessions"):
        to_frame(found)


@given(st.lists(st.floats(), min_size=1, max_size=4))
def test_no_time_is_too_odd(times):
    frame = to_frame([SummaryPayload(forwarded_at=at) for at in times])
    assert len(frame) == len(times)
    assert str(frame["forwarded_at"].dtype) == "datetime64[us, UTC]"


def test_a_missing_extra_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"autoplay-rag\[pandas\]"):
        to_frame([])


SESSION = SessionSummary("s1", "acme", None, None, 1712345678.5, 2, 3, "exported", ambiguous=True)
EVENT = SessionEvent(
    "s1", "acme", "u1", "actions", 1712345670.5, None, "https://a.test/", "click", "", "Export", 7
)


@pytest.mark.parametrize("found", [SESSION, [SESSION], Sessions([SESSION], total=9)])
def test_a_session_of_a_list_is_a_row(found):
    frame = to_frame(found)
    assert frame["session_id"].tolist() == ["s1"]
    assert frame["ended_at"][0] == datetime(2024, 4, 5, 19, 34, 38, 500_000, UTC)
    assert frame["started_at"].isna().all()
    assert (frame["actions"][0], frame["what"][0]) == (3, "exported")


def test_an_action_of_a_session_is_a_row():
    whole = WholeSession("s1", "acme", "u1", ("u1",), False, None, None, 1, (EVENT,), "Export")
    for found in (EVENT, [EVENT], whole):
        frame = to_frame(found)
        assert frame[["type", "page", "seq"]].to_numpy().tolist() == [
            ["click", "https://a.test/", 7]
        ]
    nothing = to_frame(Sessions())
    assert "what" in nothing
    assert nothing.empty
    assert "seq" in to_frame(replace(whole, events=()))


def test_kinds_are_not_mixed():
    with pytest.raises(TypeError, match="all of one kind"):
        to_frame([SESSION, EVENT])
