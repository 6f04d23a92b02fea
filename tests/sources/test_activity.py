"""LiveActivitySource over real HTTP: what is new, who is watched, how it waits, what it raises."""

import asyncio
import logging
import pickle
import threading
from contextlib import aclosing

import pytest
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response

from autoplay_rag.errors import (
    AuthenticationError,
    ClientStateError,
    ConfigurationError,
    ConnectorStatusError,
    RedirectError,
    TransientError,
)
from autoplay_rag.sources import LiveActivitySource
from autoplay_rag.sources import activity as activity_module
from autoplay_rag.sources.sessions import cut_name

T = 1_700_000_000.0
TOKEN = "mcp-secret-key"


def source_of(server, users=("ann",), **options):
    options = {"interval": 0.05, **options}
    return LiveActivitySource(server.url, "acme", TOKEN, users=users, **options)


async def test_new_actions_alone_go_on_in_their_sessions(server, collected):
    server.click("ann", "Home", T)
    server.click("ann", "Export", T + 60)
    server.click("ann", "Late", T + 60 + 1801)
    async with source_of(server).on_actions(collected) as source:
        source.run_in_background()
        await collected.wait(3)
        await server.wait(4)
        server.click("ann", "Save", T + 60 + 1900)
        await collected.wait(4)
        await server.wait(len(server.requests) + 2)
    first, second, third = collected.payloads
    assert [action.title for action in first.actions] == ["Home", "Export"]
    assert (first.product_id, first.user_id) == ("acme", "ann")
    assert first.session_id == cut_name("acme", "ann", T)
    assert second.session_id == third.session_id == cut_name("acme", "ann", T + 1861)
    assert first.forwarded_at == server.as_of
    assert collected.titles == ["Home", "Export", "Late", "Save"]
    assert source.counts.actions == 4
    assert source.state == "stopped"
    assert {headers["authorization"] for _, headers in server.requests} == {f"Bearer {TOKEN}"}


async def test_a_shuffled_answer_is_put_in_order(server, collected):
    for title, at in (("C", T + 20), ("A", T), ("B", T + 10)):
        server.click("ann", title, at)
    async with source_of(server).on_actions(collected) as source:
        source.run_in_background()
        await collected.wait(3)
    assert collected.titles == ["A", "B", "C"]


async def test_get_returns_everything_though_nothing_was_watched(server, collected):
    server.click("bob", "Export", T)
    server.click("bob", "Much later", T + 9000)
    async with source_of(server, users=()).on_actions(collected) as source:
        for _ in range(2):  # without a run, on a thread of the source
            found = await source.get("bob")
            assert [one.session_id for one in found] == [
                cut_name("acme", "bob", T),
                cut_name("acme", "bob", T + 9000),
            ]
        assert collected.titles == ["Export", "Much later"]
        source.run_in_background()
        server.click("bob", "More", T + 9001)
        assert len((await source.get("bob"))[1].actions) == 2
        assert collected.titles == ["Export", "Much later", "More"]
        assert await source.get("nobody") == []
        assert await source.get("..") == []
        assert len(await source.pull("bob")) == 2
    assert len(server.requests) == 5


async def test_get_sync_works_in_a_thread_and_inside_a_loop(server, collected):
    server.click("bob", "Export", T)
    async with source_of(server, users=()).on_actions(collected) as source:
        source.run_in_background()
        found = await asyncio.to_thread(source.get_sync, "bob", 30.0)
        assert found[0].user_id == "bob"
        assert collected.titles == ["Export"]

        done = threading.Event()

        async def inside():
            # A loop that is blocked meanwhile: the callbacks get the actions with the next pull.
            assert source.get_sync("bob", 30.0)[0].user_id == "bob"
            done.set()

        await asyncio.to_thread(asyncio.run, inside())
        assert done.is_set()
        server.script = lambda user, headers: server.hang()
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(source.get_sync, "bob", 0.05)


async def test_whoever_asked_is_watched(server, collected):
    server.click("ann", "Home", T)
    server.click("bob", "Export", T)
    async with source_of(server, users="asked").on_actions(collected) as source:
        source.run_in_background()
        source.note_asked("ann")
        await collected.wait(1)
        assert collected.titles == ["Home"]
        await source.get("bob")
        server.click("bob", "Save", T + 1)
        await collected.wait(3)
        assert source.watched == 2


async def test_users_of_a_set_and_of_a_function_may_change(server, collected, monkeypatch):
    monkeypatch.setattr(activity_module, "_LOOK_SECONDS", 0.01)
    for user in ("ann", "bob", "cid"):
        server.click(user, user, T)
    users = {"ann"}
    async with source_of(server, users=users).on_actions(collected) as source:
        source.run_in_background()
        await collected.wait(1)
        users.add("bob")
        await collected.wait(2)
        users.remove("ann")
        await server.wait(len(server.requests) + 8)
        assert source.watched == 1

    async def named():
        return ["cid", "", "..", "x" * 1000]

    async with source_of(server, users=named).on_actions(collected) as source:
        source.run_in_background()
        await collected.wait(3)
    assert collected.titles == ["ann", "bob", "cid"]


async def test_a_function_that_fails_leaves_the_users_as_they_were(server, collected, caplog):
    server.click("ann", "Home", T)
    calls = []

    async def named():
        calls.append(1)
        if len(calls) > 1:
            raise OSError("the database is away")
        return ["ann"]

    async with source_of(server, users=named).on_actions(collected) as source:
        source.run_in_background()
        await collected.wait(1)
        await server.wait(len(server.requests) + 3)
    assert len(calls) > 2
    assert sum("users to watch cannot be found" in r.message for r in caplog.records) == 1


async def test_unchanged_answers_are_not_sent_again(server, collected):
    server.click("ann", "Home", T)
    tags = iter(['"v1"'])

    def conditional(user, headers):
        if headers.get("if-none-match") == '"v1"':
            assert headers["if-modified-since"] == "Thu, 01 Jan 2026 00:00:00 GMT"
            return Response(status_code=304)
        return JSONResponse(
            {"user_id": user, "as_of": T, "actions": server.actions[user]},
            headers={"ETag": next(tags), "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"},
        )

    server.script = conditional
    async with source_of(server).on_actions(collected) as source:
        source.run_in_background()
        await server.wait(5)
    assert collected.titles == ["Home"]
    assert source.counts.unchanged >= 4


async def test_young_actions_wait_though_the_answer_is_unchanged(server, collected):
    server.as_of = T
    server.click("ann", "Old", T - 100)
    server.click("ann", "Young", T - 5)
    server.click("ann", "Wrong clock", T + 9000)

    def conditional(user, headers):
        return Response(status_code=304) if headers.get("if-none-match") else None

    source = source_of(server)
    held = [60.0]
    source.hold_back = lambda: held[0]
    async with source.on_actions(collected):
        source.run_in_background()
        await collected.wait(2)
        await server.wait(4)
        assert collected.titles == ["Old", "Wrong clock"]
        held[0] = 0.0
        await collected.wait(3)
    assert collected.titles == ["Old", "Wrong clock", "Young"]


async def test_a_callback_that_raises_gets_the_actions_again(server, collected, caplog):
    server.click("ann", "Home", T)
    failures = []

    async def flaky(payload):
        if len(failures) < 2:
            failures.append(payload)
            raise ValueError("not now")
        await collected(payload)

    async with source_of(server).on_actions(flaky) as source:
        source.run_in_background()
        await collected.wait(1)
        await server.wait(len(server.requests) + 2)
    assert collected.titles == ["Home"]
    assert source.counts.failures == 2
    assert sum("a callback raised" in record.message for record in caplog.records) == 1


async def test_plain_functions_are_called_in_a_thread(server):
    server.click("ann", "Home", T)
    called = []
    here, there = threading.get_ident(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def plain(payload):
        called.append(threading.get_ident())
        loop.call_soon_threadsafe(there.set)

    async with source_of(server).on_actions(plain).on_summary(plain) as source:
        source.run_in_background()
        async with asyncio.timeout(30):
            await there.wait()
    assert called[0] != here


async def test_concurrency_is_bounded(server):
    server.script = lambda user, headers: asyncio.sleep(0.02, None)
    users = {f"u{n}" for n in range(40)}
    async with source_of(server, users=users, concurrency=3) as source:
        source.run_in_background()
        await server.wait(80)
        assert source.watched == 40
    assert 2 <= server.most_in_flight <= 3


async def test_everybody_pauses_for_as_long_as_the_server_asks(server, collected, eventually):
    users = {f"u{n}" for n in range(20)}
    for user in users:
        server.click(user, user, T)
    refusing = asyncio.Event()

    def busy(user, headers):
        refusing.set()
        return PlainTextResponse("", status_code=429, headers={"Retry-After": "1"})

    server.script = busy
    async with source_of(server, users=users).on_actions(collected) as source:
        source.run_in_background()
        await refusing.wait()
        loop = asyncio.get_running_loop()
        started, before = loop.time(), len(server.requests)
        await eventually(lambda: source.state == "waiting")
        with pytest.raises(TransientError, match="for another"):
            await source.get("u1")
        server.script = lambda user, headers: None
        await collected.wait(20)
        assert loop.time() - started >= 0.9
    assert before <= 8
    assert isinstance(source.last_error, TransientError)
    assert sorted(collected.titles) == sorted(users)


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refusal_at_the_start_ends_the_run(server, status, caplog):
    server.script = lambda user, headers: PlainTextResponse("no", status_code=status)
    source = source_of(server)
    with pytest.raises(AuthenticationError) as caught:
        await source.run()
    assert caught.value.status_code == status
    assert source.state == "failed"
    assert source.last_error is caught.value
    assert "ann" not in f"{caught.value!r} {caught.value.request!r} {caught.value.request.url}"
    with pytest.raises(AuthenticationError):
        await source.run_in_background()
    assert "the pull source ended" in caplog.text
    await source.aclose()


async def test_a_refusal_later_is_retried_slowly_and_then_ends_the_run(
    server, collected, monkeypatch
):
    monkeypatch.setattr(activity_module, "_REFUSED_SECONDS", 0.01)
    server.click("ann", "Home", T)
    async with source_of(server).on_actions(collected) as source:
        running = source.run_in_background()
        await collected.wait(1)
        server.script = lambda user, headers: PlainTextResponse("no", status_code=401)
        with pytest.raises(AuthenticationError):
            await running
        asked = len(server.requests)
    assert asked >= 7  # the first refusal, and five retries


async def test_a_refusal_is_retried_for_as_long_as_it_lasts_if_asked(
    server, collected, monkeypatch
):
    monkeypatch.setattr(activity_module, "_REFUSED_SECONDS", 0.01)
    server.click("ann", "Home", T)
    server.script = lambda user, headers: PlainTextResponse("no", status_code=403)
    async with source_of(server, retry_refusals=True).on_actions(collected) as source:
        source.run_in_background()
        await server.wait(10)
        assert isinstance(source.refusal, AuthenticationError)
        server.script = lambda user, headers: None
        await collected.wait(1)
        assert (source.refusal, source.state) == (None, "connected")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda: RedirectResponse("https://elsewhere.test/"), RedirectError),
        (lambda: PlainTextResponse("no", status_code=400), ConnectorStatusError),
    ],
)
async def test_other_refusals(server, answer, error):
    server.script = lambda user, headers: answer()
    with pytest.raises(error) as caught:
        await source_of(server).run()
    assert "ann" not in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        lambda: PlainTextResponse("<html>", status_code=200),
        lambda: JSONResponse([1, 2]),
        lambda: JSONResponse({"user_id": "bob", "actions": [{"title": "Of another user"}]}),
        lambda: PlainTextResponse("x" * (5 * 2**20)),
        lambda: PlainTextResponse("", status_code=503),
        lambda: Response(status_code=304),  # though no version was named
    ],
)
async def test_answers_that_cannot_be_used_are_retried(server, collected, answer):
    server.click("ann", "Home", T)
    bad = [1]
    server.script = lambda user, headers: answer() if bad and bad.pop() else None
    async with source_of(server).on_actions(collected) as source:
        source.run_in_background()
        await collected.wait(1)
    assert isinstance(source.last_error, TransientError)
    assert source.counts.failures == 1
    assert collected.titles == ["Home"]


async def test_a_bad_value_costs_itself_alone(server, collected):
    server.actions["ann"] = [
        "no action",
        {"title": 5, "type": "click", "timestamp_start": str(T), "raw_url": None},
        {"title": "Export", "type": "click", "timestamp_start": T + 1},
    ]
    async with source_of(server).on_actions(collected) as source:
        source.run_in_background()
        await collected.wait(2)
    assert "Export" in collected.titles


async def test_actions_without_a_time_go_on_once(server, collected):
    server.click("ann", "Timeless", 0.0)
    async with source_of(server).on_actions(collected) as source:
        source.run_in_background()
        await server.wait(4)
    assert collected.titles == ["Timeless"]


async def test_an_unknown_user_is_no_error(server, collected):
    server.click("ann", "Home", T)
    server.script = lambda user, headers: (
        PlainTextResponse("", status_code=404) if user == "new" else None
    )
    async with source_of(server, users={"new", "ann"}).on_actions(collected) as source:
        source.run_in_background()
        await collected.wait(1)
        await server.wait(2, "new")
    assert source.counts.failures == 0


async def test_no_connection_is_retried(eventually):
    source = LiveActivitySource("http://127.0.0.1:9", "acme", TOKEN, users={"ann"}, interval=0.05)
    async with source:
        source.run_in_background()
        await eventually(lambda: source.state == "waiting")
        assert source.counts.connections == 0


async def test_a_slow_answer_is_given_up(server):
    server.script = lambda user, headers: server.hang()
    async with source_of(server, request_timeout=0.1) as source:
        with pytest.raises(TransientError, match="TimeoutError"):
            await source.get("ann")


async def test_stream_yields_payloads_and_waits_for_a_slow_consumer(server):
    for n in range(5):
        server.click(f"u{n}", f"click {n}", T)
    source = source_of(server, users={f"u{n}" for n in range(5)}, concurrency=1)
    found = []
    async with aclosing(source.stream(limit=5)) as payloads:
        async for payload in payloads:
            found.append(payload.user_id)
            if len(found) == 1:
                await server.wait(2)
                assert len(server.requests) <= 3  # the others wait
    assert sorted(found) == [f"u{n}" for n in range(5)]
    assert source.state == "stopped"
    assert [one async for one in source.stream(seconds=0.05)] == []  # nothing is new
    server.click("u1", "more", T + 1)
    assert [one.user_id async for one in source.stream(idle=1.0, limit=1)] == ["u1"]
    assert [one async for one in source.stream(idle=0)] == []
    await source.aclose()


async def test_stream_raises_what_ended_the_run(server):
    server.script = lambda user, headers: PlainTextResponse("no", status_code=401)
    with pytest.raises(AuthenticationError):
        async for _ in source_of(server).stream():
            pass
    with pytest.raises(ConfigurationError):
        await anext(source_of(server).stream(limit=-1))


async def test_one_run_at_a_time_and_it_can_be_repeated(server, collected):
    server.click("ann", "Home", T)
    source = source_of(server).on_actions(collected)
    first = source.run_in_background()
    with pytest.raises(ClientStateError, match="running already"):
        source.run_in_background()
    await collected.wait(1)
    source.stop()
    await first
    second = source.run_in_background()
    await server.wait(len(server.requests) + 2)
    second.cancel()
    await asyncio.wait([second])
    assert collected.titles == ["Home"]
    third = source.run_in_background()
    third.cancel()  # before its first step
    await asyncio.wait([third])
    assert source.state == "stopped"
    await source.aclose()
    await source.aclose()


async def test_secrets_and_users_are_in_no_log_and_no_repr(server, caplog):
    caplog.set_level(logging.DEBUG)
    server.click("secret-user", "Home", T)
    async with source_of(server, users={"secret-user"}) as source:
        source.run_in_background()
        await server.wait(2)
        server.script = lambda user, headers: PlainTextResponse("", status_code=503)
        with pytest.raises(TransientError):
            await source.get("secret-user")
        logged = [str(record.args) + record.msg for record in caplog.records]
        text = f"{source!r} {vars(source)!r} {source.last_error!r} {caplog.text} {logged}"
    assert TOKEN not in text
    ours = [r.getMessage() for r in caplog.records if not r.name.startswith("uvicorn")]
    assert "secret-user" not in str(ours)
    assert "secret-user" not in repr(source.last_error)
    with pytest.raises(TypeError):
        pickle.dumps(source)


@pytest.mark.parametrize(
    "wrong",
    [
        {"users": "ann"},
        {"users": 5},
        {"interval": 0},
        {"concurrency": 0},
        {"url": "ftp://a.test"},
        {"url": "https://user:secret@a.test"},
        {"url": "nonsense"},
        {"product_id": ""},
        {"token": "Bearer x"},
        {"max_users": 0},
        {"request_timeout": 0},
    ],
)
def test_wrong_arguments(wrong):
    given = {"url": "https://a.test", "product_id": "p", "token": "k", "users": (), **wrong}
    with pytest.raises(ConfigurationError) as caught:
        LiveActivitySource(given.pop("url"), given.pop("product_id"), given.pop("token"), **given)
    assert "secret" not in str(caught.value)


def test_the_address_of_mcp_is_understood():
    made = [
        LiveActivitySource(url, "p", users=()).url
        for url in (
            "https://a.test/mcp/",
            "https://a.test/mcp",
            "https://a.test",
            "https://a.test/v2",
        )
    ]
    assert made == ["https://a.test/", "https://a.test/", "https://a.test/", "https://a.test/v2"]


async def test_more_users_than_allowed_are_not_watched(server, caplog):
    async with source_of(server, users=[f"u{n}" for n in range(9)], max_users=4) as source:
        source.run_in_background()
        await server.wait(4)
        assert source.watched == 4
    assert "max_users is 4" in caplog.text


async def test_a_forgotten_user_is_pulled_as_the_first_time(server, collected):
    server.click("ann", "Home", T)
    async with source_of(server, users=()).on_actions(collected) as source:
        await source.get("ann")
        source.forget("ann")
        await source.get("ann")
    assert collected.titles == ["Home", "Home"]


async def test_a_pipeline_names_the_source_of_a_product(make_pipeline):
    async with make_pipeline() as pipeline:
        assert pipeline.pull_source() is None
        first = pipeline.attach(LiveActivitySource("http://127.0.0.1:9", "acme", users=()))
        assert pipeline.pull_source() is pipeline.pull_source("acme") is first
        assert pipeline.pull_source("umbrella") is None
        other = pipeline.attach(LiveActivitySource("http://127.0.0.1:9", "umbrella", users=()))
        assert pipeline.pull_source() is None, "the user of which product?"
        assert pipeline.pull_source("umbrella") is other
