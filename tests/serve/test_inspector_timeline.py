"""The rows of a session's timeline."""

from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag.search.timeline import SessionEvent
from autoplay_rag.serve.inspector.timeline import rows_of


def event(at, page="", *, kind="actions", lasts=0.0, number=0):
    ended = None if at is None else at + lasts
    return SessionEvent("s1", "acme", "ann", kind, at, ended, page, "click", "", "", number)


def kinds(*events):
    return [row.kind for row in rows_of(events)]


def test_a_minute_without_an_event_is_a_gap():
    assert kinds(event(1000.0), event(1059.0)) == ["event", "event"]
    [_, gap, _] = rows_of([event(1000.0), event(1060.0)])
    assert (gap.kind, gap.seconds) == ("gap", 60.0)
    assert kinds(event(1000.0, lasts=100.0), event(1150.0)) == ["event", "event"]
    assert kinds(event(1000.0, lasts=500.0), event(1010.0), event(1505.0)).count("gap") == 0


def test_a_page_is_named_once_until_it_changes():
    found = kinds(event(1.0, "a"), event(2.0, "a"), event(3.0), event(4.0, "b"), event(5.0, "a"))
    assert found == ["page", "event", "event", "event", "page", "event", "page", "event"]


def test_a_new_day_is_named():
    evening = 86_400.0 * 9 - 30
    assert kinds(event(evening), event(evening + 40)) == ["event", "day", "event"]


@given(
    st.lists(
        st.tuples(
            st.none() | st.floats(allow_nan=True) | st.floats(1, 1e6),
            st.sampled_from(["", "a", "b"]),
            st.sampled_from(["actions", "summary", "chat"]),
        ),
        max_size=20,
    )
)
def test_every_event_is_a_row_in_its_place(given_events):
    events = [
        event(at, page, kind=kind, number=n) for n, (at, page, kind) in enumerate(given_events)
    ]
    rows = rows_of(events)
    assert [row.event for row in rows if row.kind == "event"] == events
    assert all(row.seconds >= 60 for row in rows if row.kind == "gap")
