"""Whose fault a failure is, and how long everything waits together."""

from __future__ import annotations

import math

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag.errors import (
    EmbedderRejectedError,
    EmbedderUnavailableError,
    StoreLockedError,
    StoreMismatchError,
    StoreRejectedError,
    StoreUnavailableError,
)
from autoplay_rag.ingest.failures import Pause, is_rejection, retry_after


def http_error(status, headers=None):
    request = httpx.Request("POST", "http://x.test")
    response = httpx.Response(status, headers=headers, request=request)
    return httpx.HTTPStatusError("no", request=request, response=response)


class CodedError(Exception):
    """As the OpenAI client's errors are: the status on the error itself."""

    def __init__(self, status_code):
        super().__init__("no")
        self.status_code = status_code


@pytest.mark.parametrize("make", [http_error, CodedError])
@pytest.mark.parametrize("status", [401, 403, 404, 408, 409, 429, 500, 502, 503, 504, 529])
def test_these_answers_are_outages(make, status):
    assert not is_rejection(make(status))


@pytest.mark.parametrize("make", [http_error, CodedError])
@pytest.mark.parametrize("status", [400, 413, 422])
def test_these_answers_blame_the_input(make, status):
    assert is_rejection(make(status))


@pytest.mark.parametrize(
    ("error", "rejection"),
    [
        (ValueError("x"), True),
        (TypeError("x"), True),
        (KeyError("x"), True),
        (ZeroDivisionError(), True),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "no"), True),
        (EmbedderRejectedError("x"), True),
        (StoreRejectedError("x"), True),
        (EmbedderUnavailableError("x"), False),
        (StoreUnavailableError("x"), False),
        (StoreLockedError("x"), False),
        (StoreMismatchError("x"), False),
        (ConnectionRefusedError(), False),
        (TimeoutError(), False),
        (httpx.ReadTimeout("x"), False),
        (OSError("disk"), False),
        (RuntimeError("who knows"), False),
        (MemoryError(), False),
    ],
)
def test_errors_without_an_answer(error, rejection):
    assert is_rejection(error) is rejection


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (EmbedderUnavailableError("x", retry_after=12.5), 12.5),
        (EmbedderUnavailableError("x"), 0.0),
        (EmbedderUnavailableError("x", retry_after=-3.0), 0.0),
        (EmbedderUnavailableError("x", retry_after=1e9), 3600.0),
        (http_error(429, {"Retry-After": "7"}), 7.0),
        (http_error(429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}), 0.0),
        (http_error(429, {"Retry-After": "Wed, 21 Oct 2215 07:28:00 GMT"}), 3600.0),
        (http_error(429), 0.0),
        (RuntimeError(), 0.0),
    ],
)
def test_how_long_the_service_asked_to_wait(error, seconds):
    assert retry_after(error) == seconds


def test_waiting_grows_to_a_limit_and_ends_with_a_success():
    pause = Pause(shortest=1.0, longest=8.0)
    waits = []
    now = 0.0
    for _ in range(8):
        pause.failed(now, now)
        waits.append(pause.until - now)
        now = pause.until
    for wait, meant in zip(waits, [1, 2, 4, 8, 8, 8, 8, 8], strict=True):
        assert 0.8 * meant <= wait <= 1.2 * meant
    pause.passed()
    assert (pause.until, pause.failures) == (0.0, 0)
    pause.failed(100.0, 101.0)
    assert pause.until <= 101.0 + 1.2


def test_requests_that_were_under_way_together_are_one_failure():
    pause = Pause(shortest=1.0)
    pause.failed(10.0, 11.0)
    until = pause.until
    pause.failed(10.5, 11.4)
    pause.failed(10.9, 11.5)
    assert (pause.failures, pause.until) == (1, until)
    pause.failed(10.9, 12.0, asked=30.0)  # but what one of them was told holds for all
    assert (pause.failures, pause.until) == (1, 42.0)


@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.floats(0, 100), st.floats(0, 1e6, allow_nan=False)),
        max_size=50,
    )
)
def test_it_never_waits_without_end_nor_less_than_it_was_asked(failures):
    pause, now = Pause(shortest=0.5, longest=30.0), 0.0
    for ago, wait, asked in failures:
        now += wait
        pause.failed(now - ago, now, asked)
        assert pause.until >= now + asked
        assert math.isfinite(pause.until)
    most = max((asked for _, _, asked in failures), default=0.0)
    assert pause.until <= now + max(30.0 * 1.2, most)
