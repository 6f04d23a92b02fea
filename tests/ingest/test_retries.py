"""After a failed request: its cause, the wait, what is split, and when an item is dead."""

from __future__ import annotations

import math

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from autoplay_rag._failures import is_rejection, retry_after
from autoplay_rag._statuses import REJECTING_STATUSES
from autoplay_rag.errors import (
    EmbedderRejectedError,
    EmbedderUnavailableError,
    MissingCapabilityError,
    StoreLockedError,
    StoreMismatchError,
    StoreRejectedError,
    StoreUnavailableError,
    UnsupportedFilterError,
)
from autoplay_rag.ingest.retries import Pause, RequestLimits, RetryQueue


def http_error(status, headers=None):
    request = httpx.Request("POST", "http://x.test")
    response = httpx.Response(status, headers=headers, request=request)
    return httpx.HTTPStatusError("no", request=request, response=response)


class CodedError(Exception):
    """Like the OpenAI client's errors: the status is on the error itself."""

    def __init__(self, status_code):
        super().__init__("no")
        self.status_code = status_code


@pytest.mark.parametrize("make", [http_error, CodedError])
@pytest.mark.parametrize("status", [401, 403, 404, 408, 409, 429, 500, 502, 503, 504, 529])
def test_these_answers_are_outages(make, status):
    assert not is_rejection(make(status))


@pytest.mark.parametrize("make", [http_error, CodedError])
@pytest.mark.parametrize("status", sorted(REJECTING_STATUSES))
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
        (NotImplementedError("no delete"), True),
        (MissingCapabilityError("Store", "delete"), True),
        (UnsupportedFilterError("x"), False),
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
    pause.failed(10.9, 12.0, asked=30.0)  # but a Retry-After sent to one of them applies to all
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


def test_a_requested_pause_is_kept_and_a_success_ends_it():
    pause = Pause(shortest=1.0)
    pause.rest(20.0)
    pause.rest(10.0)
    assert (pause.failures, pause.until) == (0, 20.0)
    pause.passed()
    assert pause.until == 0.0


# -- the queue --------------------------------------------------------------------------------


class Service:
    """A service that answers at once; its time advances only while the queue waits."""

    def __init__(self, *, limits=RequestLimits(4, 100), max_attempts=3, take_back=None):  # noqa: B008
        self.queue = RetryQueue("service", limits, max_attempts, cost=len, take_back=take_back)
        self.now = 1000.0
        self.requests = []
        self.done = []
        self.dead = []
        self.probes = 0
        self.fail = lambda items: None
        self.probe = lambda: True

    def step(self):
        """Make the next request; return False if the queue waits for a change."""
        request = self.queue.take(self.now)
        if request is None:
            at = self.queue.next_at(self.now)
            if at is None:
                return False
            assert at > self.now
            self.now = at
            request = self.queue.take(self.now)
        if request.needs_probe:
            self.probes += 1
            proven = self.probe()
            if isinstance(proven, Exception):
                self.queue.unhealthy(request, proven, self.now)
                return True
            if proven:
                self.queue.probed()
        self.requests.append(request.items)
        if error := self.fail(request.items):
            if reason := self.queue.failed(request, error, self.now):
                self.dead.append((request.items[0], reason))
        else:
            self.queue.succeeded(request)
            self.done += request.items
        return True

    def work(self, steps=1000):
        for _ in range(steps):
            if not self.step():
                break


def poison(*names):
    """Fail every request that contains one of these."""
    return lambda items: ValueError("poison") if set(names) & set(items) else None


def test_requests_are_filled_to_their_limits():
    service = Service(limits=RequestLimits(3, 10))
    service.queue.put(["aaaa", "bbbb", "cccc", "d", "e", "f", "g", "x" * 50])
    service.work()
    assert service.requests == [["aaaa", "bbbb"], ["cccc", "d", "e"], ["f", "g"], ["x" * 50]]


def test_without_a_cost_only_the_count_limits_a_request():
    queue = RetryQueue("service", RequestLimits(3, 0), 1)
    queue.put("abcde")
    assert queue.take(0.0).items == ["a", "b", "c"]
    assert queue.take(0.0).items == ["d", "e"]
    assert queue.take(0.0) is None
    assert queue.next_at(0.0) is None


def test_an_outage_pauses_all_and_then_one_request_at_a_time_asks():
    queue = RetryQueue("service", RequestLimits(1, 0), 1, pause=Pause(1.0, 8.0))
    queue.put("abcd")
    three = [queue.take(10.0) for _ in range(3)]
    for request in three:
        assert queue.failed(request, ConnectionError("down"), 11.0) is None
    assert queue.problem == "ConnectionError: down"
    assert queue.is_out
    assert queue.take(11.5) is None
    assert 11.8 <= queue.next_at(11.5) <= 12.2
    alone = queue.take(13.0)
    assert queue.take(13.0) is None
    assert queue.next_at(13.0) is None  # not before the one in flight ends
    queue.succeeded(alone)
    assert queue.problem is None
    assert not queue.is_out
    assert [queue.take(13.0).items for _ in range(3)] == [["b"], ["a"], ["d"]]


def test_in_an_outage_nothing_is_given_up_however_long_it_lasts():
    service = Service(max_attempts=1)
    service.fail = lambda items: TimeoutError()
    service.queue.put("abcdefghij")
    service.work(200)
    assert service.done == service.dead == []
    assert len(service.requests) == 200
    assert service.now > 1000 + 100 * 24  # one attempt every 24 to 36 seconds
    service.fail = lambda items: None
    service.work()
    assert service.done == list("abcdefghij")  # still in order


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (CodedError(401), "CodedError: no; check the API key"),
        (http_error(403), "HTTPStatusError: no; check what the API key may do"),
        (CodedError(404), "CodedError: no; check the model's name and base_url"),
        (CodedError(503), "CodedError: no"),
        (EmbedderUnavailableError("answered 401; check it"), "answered 401; check it"),
        (ConnectionRefusedError("refused"), "ConnectionRefusedError: refused"),
        (StoreMismatchError("another model"), "StoreMismatchError: another model"),
    ],
)
def test_an_outage_that_lasts_is_an_error_within_the_first_minute_once(caplog, error, what):
    service = Service()
    service.fail = lambda items: error
    service.queue.put("a")
    service.work(1)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    while service.now < 1060.0:
        service.step()
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]
    said = caplog.records[-1].message
    assert f"{what}): check its address, its key and its settings" in said
    assert "has not worked since the start" in said
    assert service.queue.problem.endswith(what)
    service.work(50)
    assert len(caplog.records) == 2
    service.fail = lambda items: None
    service.work()
    assert caplog.records[-1].message == "the service is back"


def test_an_outage_after_a_success_does_not_say_that_it_never_worked(caplog):
    service = Service()
    service.queue.put("a")
    service.work()
    for _ in range(2):  # each outage logs its own lines
        caplog.clear()
        service.fail = lambda items: CodedError(401)
        service.queue.put("b")
        service.work(12)
        assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]
        assert "since the start" not in caplog.text
        service.fail = lambda items: None
        service.work()


def test_a_short_outage_or_a_wait_that_was_asked_for_is_not_an_error(caplog):
    service = Service()
    answers = iter([ConnectionError()] * 5 + [None] + [TimeoutError()] * 5 + [None])
    service.fail = lambda items: next(answers)
    for name in "ab":
        service.queue.put(name)
        service.work()
    limited = iter([EmbedderUnavailableError("rate limit", retry_after=90.0)] * 20)
    service.fail = lambda items: next(limited, None)
    service.queue.put("c")
    service.work()
    assert service.done == ["a", "b", "c"]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_service_that_refuses_everything_is_an_error_within_the_first_minute(caplog):
    service = Service()
    service.fail = lambda items: EmbedderRejectedError("answered 400 (model_not_found)")
    service.probe = lambda: EmbedderRejectedError("answered 400 (model_not_found)")
    service.queue.put("abcdefgh")
    while service.now < 1060.0:
        service.step()
    errors = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert "answered 400 (model_not_found)" in errors[0]
    assert service.dead == []


def test_requests_that_fail_together_are_one_line(caplog):
    queue = RetryQueue("service", RequestLimits(1, 0), 1)
    queue.put("abc")
    for request in [queue.take(10.0) for _ in range(3)]:
        queue.failed(request, ConnectionError("down"), 11.0)
    assert caplog.text.count("is not available") == 1


def test_what_the_service_asks_for_is_waited():
    service = Service()
    answers = iter([EmbedderUnavailableError("rate limit", retry_after=90.0)])
    service.fail = lambda items: next(answers, None)
    service.queue.put("a")
    service.work()
    assert (service.done, service.now) == (["a"], 1090.0)


def test_a_pause_requested_from_another_queue_is_kept():
    queue = RetryQueue("service", RequestLimits(1, 0), 1)
    queue.put("a")
    queue.rest(50.0)
    assert queue.take(49.0) is None
    assert queue.next_at(49.0) == 50.0
    assert queue.take(50.0).items == ["a"]


def test_a_poisoned_item_dies_alone_and_its_neighbours_are_done():
    service = Service(limits=RequestLimits(8, 100))
    service.fail = poison("c", "f")
    service.queue.put("abcdefgh")
    service.work()
    assert sorted(service.done) == list("abdegh")
    assert sorted(service.dead) == [
        ("c", "service: ValueError: poison"),
        ("f", "service: ValueError: poison"),
    ]
    for name in "cf":
        assert service.requests.count([name]) == 3
    assert service.queue.problem is None


def test_an_item_refused_alone_waits_longer_each_time():
    service = Service(max_attempts=4)
    service.fail = poison("a")
    service.queue.put("a")
    times = []
    while service.step():
        times.append(service.now - 1000.0)
    assert times == pytest.approx([0.0, 0.2, 0.6, 1.4])


def test_others_go_before_an_item_that_was_refused():
    service = Service(limits=RequestLimits(1, 100))
    service.fail = poison("a")
    service.queue.put("abc")
    service.work(3)
    assert service.requests == [["a"], ["b"], ["c"]]
    service.queue.put("d")
    service.now += 60.0
    service.step()  # b and c succeeded since: no probe is needed, and its wait is over
    assert service.requests[-1] == ["a"]
    assert service.probes == 0


def test_others_go_before_a_probe_too():
    service = Service(limits=RequestLimits(1, 100))
    service.fail = poison("a")
    service.queue.put("a")
    service.work(1)
    service.now += 60.0  # its wait is over
    service.queue.put("b")
    service.work(2)
    assert service.requests == [["a"], ["b"], ["a"]]
    assert service.probes == 0  # the success of b replaces the probe


def test_a_lone_item_dies_only_while_the_service_is_proven_well():
    service = Service()
    service.fail = poison("a")
    service.probe = lambda: ValueError("NaN for everything")
    service.queue.put("a")
    service.work(30)
    assert service.probes == 29
    assert service.dead == []
    assert service.requests == [["a"]]
    assert service.queue.problem == "ValueError: NaN for everything"
    service.probe = lambda: True
    service.work()
    assert service.dead == [("a", "service: ValueError: poison")]
    assert service.requests == [["a"]] * 3


def test_a_service_that_refuses_the_probe_still_gets_all_others():
    service = Service(limits=RequestLimits(1, 100))
    service.fail = poison("a")
    service.probe = lambda: ValueError("no metadata")
    service.queue.put("a")
    service.work(10)
    service.queue.put("b")
    service.work(15)
    assert service.done == ["b"]
    assert service.dead == []  # refused twice: the success of b confirmed the second
    service.queue.put("cde")
    service.work(15)
    assert service.done == list("bcde")
    assert [item for item, _ in service.dead] == ["a"]


def test_without_a_probe_an_item_dies_only_after_another_succeeds(caplog):
    service = Service(limits=RequestLimits(1, 100))
    service.probe = lambda: False
    service.fail = poison("a")
    service.queue.put("a")
    service.work(6)
    assert service.queue.problem == "ValueError: poison"  # it may be everything
    assert caplog.text.count("has accepted nothing since (ValueError: poison)") == 1
    service.queue.put("b")
    service.work(1)
    assert service.done == ["b"]
    assert service.queue.problem is None
    service.work(12)
    assert service.dead == []  # refused once before the success and often after it: counts as two
    service.queue.put("c")
    service.work(3)
    assert [item for item, _ in service.dead] == ["a"]


def test_an_outage_between_attempts_does_not_count_as_a_refusal():
    service = Service(max_attempts=2)
    answers = iter([ValueError("no"), ConnectionError(), ConnectionError(), TimeoutError(), None])
    service.fail = lambda items: next(answers)
    service.queue.put("a")
    service.work()
    assert service.done == ["a"]


def test_an_item_that_its_owner_takes_back_leaves_the_queue():
    taken = []

    def take_back(item):
        if "+" not in item:
            return False
        taken.append(item)
        service.queue.put(item.split("+"))
        return True

    service = Service(take_back=take_back)
    service.fail = poison("a+b")
    service.queue.put(["a+b", "c"])
    service.work()
    assert taken == ["a+b"]
    assert sorted(service.done) == ["a", "b", "c"]
    assert service.dead == []


def test_a_request_ended_by_the_caller_is_not_repeated():
    queue = RetryQueue("service", RequestLimits(1, 0), 1, pause=Pause(1.0, 1.0))
    queue.put("abc")
    first, second = queue.take(0.0), queue.take(0.0)
    queue.failed(first, ConnectionError(), 1.0)
    queue.withdrawn(second)
    assert queue.is_out  # it says nothing about the service
    assert [queue.take(9.0).items, queue.take(9.0)] == [["a"], None]


def test_a_cleared_queue_is_as_new():
    service = Service(limits=RequestLimits(2, 100))
    service.fail = poison("a")
    service.queue.put("abcd")
    service.work(3)  # a waits for its retry
    service.fail = lambda items: ConnectionError()
    service.work(1)
    service.queue.clear()
    assert service.queue.problem is None
    assert not service.queue.is_out
    assert service.queue.next_at(0.0) is None
    service.queue.put("e")
    assert service.queue.take(0.0).items == ["e"]


class AnyOrder(RuleBasedStateMachine):
    """Requests end in any order and any way: no item is lost, doubled or declared dead too early."""

    @initialize(count=st.integers(1, 5), cost=st.integers(1, 9), max_attempts=st.integers(1, 3))
    def begin(self, count, cost, max_attempts):
        self.limits = RequestLimits(count, cost)
        self.max_attempts = max_attempts
        self.queue = RetryQueue("service", self.limits, max_attempts, cost=lambda item: item[1])
        self.now = 0.0
        self.items = []
        self.in_flight = []
        self.ended = {}
        self.successes = 0
        self.counted = {}  # by item: refusals that count, and the successes at the last one
        self.out = False
        self.out_since = -1.0

    @rule(costs=st.lists(st.integers(1, 6), max_size=6))
    def put(self, costs):
        new = [(len(self.items) + n, cost) for n, cost in enumerate(costs)]
        self.items += new
        self.queue.put(new)

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 40.0]))
    def wait(self, seconds):
        self.now += seconds

    @rule(probe=st.sampled_from([True, False, None]))
    def take(self, probe):
        request = self.queue.take(self.now)
        at = self.queue.next_at(self.now)
        if request is None:
            assert at is None or at > self.now
            return
        assert not (self.out and self.in_flight)
        items = request.items
        assert 1 <= len(items) <= self.limits.count
        assert len(items) == 1 or sum(cost for _, cost in items) <= self.limits.cost
        _, seen = self.counted.get(items[0], (0, None))
        assert request.needs_probe == (len(items) == 1 and seen == self.successes)
        if request.needs_probe and probe is None:
            self.queue.unhealthy(request, ValueError("refused"), self.now)
            self.note_outage(request)
            return
        if request.needs_probe and probe:
            self.queue.probed()
            self.successes += 1
            self.out = False
        self.in_flight.append(request)

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), how=st.sampled_from(["success", "outage", "rejection"]))
    def end(self, data, how):
        request = self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))
        if how == "success":
            self.queue.succeeded(request)
            self.note_success(request)
        elif how == "outage":
            assert self.queue.failed(request, ConnectionError(), self.now) is None
            self.note_outage(request)
        else:
            reason = self.queue.failed(request, ValueError("no"), self.now)
            if len(request.items) > 1:
                assert reason is None
                return
            item = request.items[0]
            attempts, seen = self.counted.get(item, (0, None))
            if seen is None or self.successes > seen:
                attempts += 1
            self.counted[item] = (attempts, self.successes if attempts else seen)
            assert (reason is not None) == (attempts >= self.max_attempts)
            if reason is not None:
                self.note_end(item, "given up")

    def note_outage(self, request):
        # A request from before the last outage says nothing about the current state.
        if request.started >= self.out_since:
            self.out = True
            self.out_since = self.now

    def note_success(self, request):
        self.successes += 1
        self.out = False
        for item in request.items:
            self.note_end(item, "done")

    def note_end(self, item, how):
        assert item not in self.ended
        self.ended[item] = how

    @invariant()
    def nothing_is_in_two_requests(self):
        held = [item for request in getattr(self, "in_flight", []) for item in request.items]
        assert len(held) == len(set(held))
        assert not set(held) & set(getattr(self, "ended", {}))

    def teardown(self):
        """The service works from now on: every item that has not ended succeeds."""
        if not hasattr(self, "queue"):
            return
        for request in self.in_flight:
            self.queue.succeeded(request)
            self.note_success(request)
        while True:
            request = self.queue.take(self.now)
            if request is not None:
                self.queue.succeeded(request)
                self.note_success(request)
            elif (at := self.queue.next_at(self.now)) is not None:
                self.now = at
            else:
                break
        assert sorted(self.ended) == sorted(self.items)
        assert self.queue.problem is None


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(stateful_step_count=60)


@given(
    kinds=st.lists(st.integers(0, 9), min_size=1, max_size=25),
    poisoned=st.sets(st.integers(0, 9), max_size=4),
    outages=st.sets(st.integers(0, 30), max_size=6),
    count=st.integers(1, 8),
)
@settings(deadline=None)
def test_every_item_ends_once_and_only_the_poisoned_die(kinds, poisoned, outages, count):
    names = [f"{kind}.{n}" for n, kind in enumerate(kinds)]
    bad = {name for name, kind in zip(names, kinds, strict=True) if kind in poisoned}
    service = Service(limits=RequestLimits(count, 1000))

    def fail(items):
        if len(service.requests) in outages:
            return ConnectionError("down")
        return ValueError("poison") if bad & set(items) else None

    service.fail = fail
    service.queue.put(names)
    service.work(5000)
    assert sorted(service.done) == sorted(set(names) - bad)
    assert sorted(item for item, _ in service.dead) == sorted(bad)
    for name in bad:
        assert service.requests.count([name]) >= 3
