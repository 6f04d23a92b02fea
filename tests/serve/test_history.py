"""The last hour of a pipeline, as the inspector plots it."""

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag.serve.history import History


def pipeline(**values):
    ledger = SimpleNamespace(received=0, stored=0, pending=0)
    given = {"is_running": True, "ledger": ledger, "lag": 0.0, "client_states": []}
    return SimpleNamespace(**given | values)


def test_samples_of_ten_seconds_are_one():
    now = [1000.0]
    watched = pipeline()
    history = History(watched, lambda: now[0])
    assert history.latest is None
    for at, lag, received, pending in ((1001, 2.0, 5, 5), (1004, 9.0, 8, 7), (1009, 1.0, 9, 0)):
        now[0], watched.lag = at, lag
        watched.ledger = SimpleNamespace(
            received=received, stored=received - pending, pending=pending
        )
        history.sample()
    [sample] = history.samples
    assert sample == (1000.0, 9.0, 9, 9, 7)
    now[0] = 1010.0
    history.sample()
    assert [one.at for one in history.samples] == [1000.0, 1010.0]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60))
def test_samples_are_in_order_and_bounded_whatever_the_clock_does(times):
    now = [0.0]
    history = History(pipeline(), lambda: now[0])
    for at in times:
        now[0] = at
        history.sample()
    found = [one.at for one in history.samples]
    assert found == sorted(set(found))
    assert len(found) <= 360


def test_an_hour_is_kept():
    now = [0.0]
    history = History(pipeline(), lambda: now[0])
    for _ in range(400):
        now[0] += 10
        history.sample()
    assert len(history.samples) == 360
    assert history.samples[0].at == now[0] - 3590


def test_a_stopped_pipeline_is_not_sampled():
    history = History(pipeline(is_running=False))
    history.sample()
    assert history.samples == []


def test_a_connection_has_the_time_of_its_last_change():
    now = [100.0]
    watched = pipeline(client_states=[("acme", "connecting")])
    history = History(watched, lambda: now[0])
    for at, state in (
        (110, "connecting"),
        (120, "connected"),
        (130, "connected"),
        (140, "waiting"),
    ):
        now[0], watched.client_states = at, [("acme", state)]
        [one] = history.connections
        if at == 130:
            assert (one.product, one.state, one.since) == ("acme", "connected", 120)
    assert history.connections[0].since == 140
    watched.client_states = []
    assert history.connections == []
