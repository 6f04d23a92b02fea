"""Pulled actions go into the topic once, in the same sessions, also after a restart of the relay."""

from autoplay_rag import ActionsPayload, SlimAction
from autoplay_rag.sources import LiveActivitySource

AT = 1.7e9


async def pull(relay, server):
    """Let a new source pull the user once."""
    source = relay.attach(LiveActivitySource(server.url, "acme", "key", users=()))
    await source.get("u1")


def titles(payloads):
    return [[action.title for action in one.actions] for one in payloads]


async def test_after_a_restart_only_new_actions_go_on(make_relay, reader, server):
    server.click("u1", "Open", AT)
    async with make_relay() as relay:
        await pull(relay, server)
    for n in range(49):  # the first action is not in the answer any more
        server.click("u1", f"Step {n}", AT + 1500 + n)
    server.click("u1", "Export", AT + 2500)
    async with make_relay() as relay:
        await pull(relay, server)
        await pull(relay, server)
        assert await relay.drain(30)
        assert relay.counts.received == 2
        found = await reader.payloads(2)
    assert titles(found) == [["Open"], [*(f"Step {n}" for n in range(49)), "Export"]]
    assert len({one.session_id for one in found}) == 1
    assert {one.user_id for one in found} == {"u1"}


async def test_what_a_stream_has_brought_is_not_pulled_again(make_relay, reader, server):
    server.click("u1", "Open", AT)
    server.click("u1", "Export", AT + 10)
    action = SlimAction("Open", "", "https://a.test/p", 0, "click", AT, AT)
    async with make_relay() as relay:
        relay.attach(LiveActivitySource(server.url, "acme", "key", users=()))
        await relay.on_actions(ActionsPayload("acme", "s1", "u1", actions=[action]))
        await pull(relay, server)
        found = await reader.payloads(2)
    assert sorted(titles(found)) == [["Export"], ["Open"]]


async def test_a_full_outbox_lets_the_source_bring_them_again(
    make_relay, restarted, server, reader
):
    server.click("u1", "Open", AT)
    restarted.kill()
    async with make_relay(max_bytes=1200) as relay:
        await relay.on_actions(ActionsPayload("acme", "s1", actions=[SlimAction("x" * 400)]))
        source = relay.attach(LiveActivitySource(server.url, "acme", "key", users=()))
        await source.get("u1")
        assert relay.counts.overflow == 1
        restarted.start()
        assert await relay.drain(30)
        await source.get("u1")
        assert ["Open"] in titles(await reader.payloads(2))
