import random

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag.connector.backoff import (
    LONGEST_WAIT,
    Backoff,
    classify,
)
from autoplay_rag.errors import (
    AuthenticationError,
    ConnectorStatusError,
    NotAnEventStreamError,
    RedirectError,
    TransientError,
)


@pytest.mark.parametrize(
    ("outcome", "verdict"),
    [
        (200, "stream"),
        *((status, "redirect") for status in (301, 302, 303, 307, 308)),
        *((status, "retry") for status in (408, 425, 429, 500, 502, 503, 504, 529, 599)),
        *((status, "fatal") for status in (204, 206, 304, 400, 401, 403, 404, 405, 410, 422)),
        (httpx.ConnectError("refused"), "retry"),
        (httpx.ReadTimeout("silent"), "retry"),
        (httpx.RemoteProtocolError("cut"), "retry"),
        (ConnectionResetError(), "retry"),
        (TransientError("closed"), "retry"),
        (httpx.LocalProtocolError("our own request"), "fatal"),
        (httpx.UnsupportedProtocol("gopher"), "fatal"),
        (NotAnEventStreamError("html"), "fatal"),
        (RuntimeError("a bug"), "fatal"),
    ],
)
def test_what_is_retried(outcome, verdict):
    assert classify(outcome) == verdict


def test_a_refusal_is_fatal():
    response = httpx.Response(401, request=httpx.Request("GET", "http://a.test/"))
    assert classify(AuthenticationError("no", response=response)) == "fatal"


@given(st.integers(), st.integers(1, 200))
def test_delays_double_up_to_the_maximum_and_are_spread(seed, attempts):
    backoff = Backoff(1.0, 30.0, random_source=random.Random(seed))
    for attempt in range(attempts):
        whole = min(30.0, 2.0**attempt)
        assert 0.75 * whole <= backoff.next_delay() <= whole
    assert backoff.failures == attempts


def test_two_clients_do_not_come_back_together():
    assert len({Backoff(1.0, 30.0).next_delay() for _ in range(20)}) > 1


@pytest.mark.parametrize(
    ("lasted", "silent", "starts_anew"),
    [
        (5.0, False, True),
        (6.0, False, True),
        (29.0, False, True),
        (3600.0, False, True),
        (4.9, False, False),
        (0.0, False, False),
        (75.0, True, False),
        (3600.0, True, False),
    ],
)
def test_only_a_connection_that_proved_itself_starts_anew(lasted, silent, starts_anew):
    backoff = Backoff(1.0, 30.0)
    for _ in range(4):
        backoff.next_delay()
    backoff.connection_ended(lasted=lasted, silent=silent)
    assert backoff.failures == (0 if starts_anew else 4)


@pytest.mark.parametrize("seconds", [6.0, 29.0, 59.0])
def test_a_proxy_that_ends_every_connection_leads_to_no_long_pause(seconds):
    backoff = Backoff(1.0, 30.0)
    for _ in range(50):
        backoff.connection_ended(lasted=seconds, silent=False)
        assert backoff.next_delay() <= 1.0
        assert backoff.failures == 1


def test_a_refusal_waits_for_the_longest_time_and_counts_as_a_failure():
    backoff = Backoff(1.0, 30.0)
    assert all(22.5 <= backoff.refused() <= 30.0 for _ in range(5))
    assert backoff.failures == 5


@pytest.mark.parametrize("status", [400, 401, 403, 405, 406, 410, 451])
def test_a_refusal_after_a_stream_is_tried_again_slowly(status):
    response = httpx.Response(status, request=httpx.Request("GET", "http://a.test/"))
    refusal = ConnectorStatusError("no", response=response)
    assert classify(refusal) == "fatal"
    assert classify(refusal, worked=True) == "refused"


def test_a_redirect_to_another_origin_counts_as_a_refusal():
    assert classify(RedirectError("to a login page")) == "fatal"
    assert classify(RedirectError("to a login page"), worked=True) == "refused"


def test_a_server_may_ask_for_more():
    backoff = Backoff(1.0, 30.0)
    assert 7.0 <= backoff.next_delay(retry_after=7.0) <= 7.7
    assert 0.75 * 2 <= backoff.next_delay(retry_after=0.0) <= 2.0


def test_the_retry_field_is_the_wait_after_a_connection_that_worked():
    backoff = Backoff(1.0, 30.0)
    backoff.ask(100)
    assert 0.1 <= backoff.next_delay() <= 0.11
    assert 0.75 * 2 <= backoff.next_delay() <= 2.0  # not the next delay: a failure came before it


def test_the_retry_field_is_never_undercut():
    backoff = Backoff(1.0, 30.0)
    backoff.ask(45_000)
    assert all(45.0 <= backoff.next_delay() <= 49.5 for _ in range(10))


@pytest.mark.parametrize("milliseconds", [10**9, 10**400])
def test_an_absurd_retry_field_is_capped(milliseconds):
    backoff = Backoff(1.0, 30.0)
    backoff.ask(milliseconds)
    assert LONGEST_WAIT <= backoff.next_delay() <= 1.1 * LONGEST_WAIT


def test_retry_zero_does_not_hammer():
    backoff = Backoff(1.0, 30.0)
    backoff.ask(0)
    assert backoff.next_delay() == 0.0
    assert backoff.next_delay() >= 1.5
