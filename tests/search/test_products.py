"""The products of ids, and lists without sessions of several people."""

import pytest
from pipelines import make_actions


@pytest.fixture
async def pipeline(make_pipeline, tmp_path):
    async with make_pipeline(journal=tmp_path / "journal.db") as pipeline:
        await pipeline.on_actions(make_actions("s1", "opened", user="ann"))
        await pipeline.on_actions(make_actions("s2", "opened", user="ann"))
        await pipeline.on_actions(make_actions("s2", "closed", user="bob"))
        await pipeline.on_actions(make_actions("s3", "looked"))
        other = make_actions("s1", "opened", user="ann")
        other.product_id = "umbrella"
        await pipeline.on_actions(other)
        yield pipeline


async def test_the_products_in_which_ids_occur(pipeline):
    assert await pipeline.products(user_id="ann") == ["acme", "umbrella"]
    assert await pipeline.products(session_id="s1") == ["acme", "umbrella"]
    assert await pipeline.products(user_id="ann", session_id="s2") == ["acme"]
    assert await pipeline.products(user_id="bob", session_id="s1") == []
    assert await pipeline.products(conversation_id="none") == []
    assert await pipeline.products() == ["acme", "umbrella"]
    await pipeline.forget(user_id="ann", product_id="umbrella")
    assert await pipeline.products(user_id="ann") == ["acme"]


async def test_shared_sessions_are_left_out(pipeline):
    async def listed(**options):
        found = await pipeline.sessions(product_id="acme", **options)
        assert found.total == len(found)
        return {one.session_id for one in found}

    assert await listed() == {"s1", "s2", "s3"}
    assert await listed(shared=False) == {"s1", "s3"}
    assert await listed(user_id="ann") == {"s1", "s2"}
    assert await listed(user_id="ann", shared=False) == {"s1"}
    assert await listed(user_id="ann", shared=False, matching="closed") == set()
    assert await listed(session_id="s2") == {"s2"}
