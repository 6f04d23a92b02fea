import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag import _retry_after
from autoplay_rag._retry_after import parse_retry_after


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("7", 7.0),
        (" 0 ", 0.0),
        ("0007", 7.0),
        ("1.5", 1.5),
        ("9" * 5000, 300.0),
        ("301", 300.0),
        ("-3", None),
        ("1e3", None),
        ("nan", None),
        ("٣", None),
        ("soon", None),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 90.0),
        ("Thu, 01 Jan 1970 00:01:40", 90.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 300.0),
        ("Fri, 99 Dec 9999 23:59:59 GMT", None),
    ],
)
def test_what_a_header_says(header, seconds):
    assert parse_retry_after(header, longest=300.0, now=10.0) == seconds


def test_the_caller_says_how_much_counts():
    assert parse_retry_after("99999", longest=3600.0) == 3600.0
    assert parse_retry_after("Thu, 01 Jan 1970 10:00:00 GMT", longest=3600.0, now=0.0) == 3600.0


def test_a_date_is_held_against_the_clock_if_nobody_says_the_time(monkeypatch):
    monkeypatch.setattr(_retry_after.time, "time", lambda: 60.0)
    assert parse_retry_after("Thu, 01 Jan 1970 00:01:40 GMT", longest=300.0) == 40.0


@given(st.text())
def test_no_header_can_do_harm(header):
    seconds = parse_retry_after(header, longest=300.0, now=1e9)
    assert seconds is None or 0 <= seconds <= 300.0
