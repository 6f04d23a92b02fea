"""A payload whose actions name several people is kept apart, by person."""

from autoplay_rag import ActionsPayload, SlimAction


def of_both():
    actions = [
        SlimAction(what, what, "https://app.test/p", n, "click", 10.0 + n, 10.0 + n, user_id=who)
        for n, (who, what) in enumerate((("ann", "paid"), ("bob", "cancelled"), (None, "left")))
    ]
    return ActionsPayload("acme", "s1", None, None, actions, 3, 20.0)


async def test_each_person_finds_the_own_part(make_pipeline, tmp_path):
    async with make_pipeline(journal=tmp_path / "journal.db") as pipeline:
        assert await pipeline.accept(of_both()) == "accepted"
        assert await pipeline.accept(of_both()) == "duplicate"
        await pipeline.drain()
        found = {
            user: [hit.text for hit in await pipeline.search("paid or cancelled", user_id=user)]
            for user in ("ann", "bob")
        }
        assert found == {"ann": ["paid"], "bob": ["cancelled\nleft"]}
        assert pipeline.ledger.received == 4
        assert pipeline.ledger.duplicate == 2
        live = pipeline.live.get(user_id="bob")
        assert [event.text for event in live.events] == ["cancelled", "left"]
        await pipeline.forget(user_id="bob")
        assert [hit.text for hit in await pipeline.search("paid or cancelled")] == ["paid"]
        whole = await pipeline.session("s1")
        assert [event.title for event in whole.events] == ["paid"]


async def test_the_worst_outcome_counts(make_pipeline):
    def select(payload):
        if payload.user_id == "bob":
            raise ValueError("not this one")
        return True

    async with make_pipeline(select=select) as pipeline:
        assert await pipeline.accept(of_both()) == "dead"
        assert (pipeline.ledger.received, pipeline.ledger.dead) == (2, 1)
