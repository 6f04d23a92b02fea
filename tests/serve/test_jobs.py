"""Jobs that change the store, and what the server says of itself and of dead letters."""

import asyncio
import json

import pytest
from pipelines import ScriptedEmbedder, make_actions
from serve_server import KEYS, fill

from autoplay_rag.maintenance import measuring
from autoplay_rag.serve import jobs
from autoplay_rag.stores import MemoryStore


class Other(ScriptedEmbedder):
    """Another model than the one in use."""

    model = "other"
    closed = False

    async def aclose(self):
        self.closed = True


@pytest.fixture
def other(monkeypatch):
    """The embedder that jobs make for the name "openai:other"."""
    made = Other(dimension=3)
    make = jobs.make_embedder
    monkeypatch.setattr(
        jobs, "make_embedder", lambda name: made if name == "openai:other" else make(name)
    )
    return made


@pytest.fixture
async def admin(running):
    async with running.client(KEYS.admin) as client:
        yield client


async def start(client, kind, **options):
    answer = await client.post("/v1/jobs", json={"kind": kind, "options": options})
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


async def ended(client, id):
    async with asyncio.timeout(20):
        while (job := (await client.get(f"/v1/jobs/{id}")).json())["ended_at"] is None:  # noqa: ASYNC110
            await asyncio.sleep(0)
    return job


async def test_reembed_moves_the_server_to_another_model(running, admin, other):
    job = await ended(admin, await start(admin, "reembed", embedder="openai:other"))
    assert (job["state"], job["error"]) == ("done", None)
    assert job["report"]["model"] == "other"
    assert job["done"] == job["total"] == job["report"]["chunks"] > 0
    assert (await admin.get("/v1/status")).json()["model"] == "other"
    assert running.pipeline.embedder is other
    assert not other.closed
    found = await admin.post("/v1/search", json={"query": "exported", "mode": "dense"})
    assert found.json()["hits"]


async def test_a_cancelled_reembed_shows_its_progress_and_changes_nothing(running, admin, other):
    asked = asyncio.Event()

    async def wait(_):
        asked.set()
        await asyncio.Event().wait()

    other.script = wait
    job_id = await start(admin, "reembed", embedder="openai:other")
    await asked.wait()
    status = (await admin.get("/v1/status")).json()
    assert status["reembedding"]["model"] == "other"
    cancelled = (await admin.post(f"/v1/jobs/{job_id}/cancel")).json()
    assert cancelled["state"] == "cancelled"
    assert other.closed
    assert running.pipeline.embedder.model == "scripted"
    assert (await admin.get("/v1/status")).json()["model"] == "scripted"
    # It goes on where it stopped.
    other.script = lambda _: None
    assert (await ended(admin, await start(admin, "reembed", embedder="openai:other")))[
        "state"
    ] == "done"


async def test_a_backup_shows_how_far_it_is(running, admin, tmp_path, monkeypatch):
    copied, go_on = asyncio.Event(), asyncio.Event()

    async def copy_to(folder):
        (folder / "vectors").write_bytes(b"x" * 100_000)
        copied.set()
        await go_on.wait()
        return True

    monkeypatch.setattr(running.pipeline.store, "copy_to", copy_to)
    monkeypatch.setattr(measuring, "_EVERY_SECONDS", 0.0)
    job_id = await start(admin, "backup", folder=str(tmp_path / "copy"))
    await copied.wait()
    while ((job := (await admin.get(f"/v1/jobs/{job_id}")).json())["done"] or 0) < 100_000:
        pass
    assert job["state"] == "running"
    assert (job["unit"], job["total"] >= job["done"]) == ("bytes", True)
    assert job["seconds_left"] >= 0
    go_on.set()
    job = await ended(admin, job_id)
    assert (job["state"], job["error"]) == ("done", None)
    assert job["done"] == job["total"] >= 2 * job["report"]["size"]


async def test_one_job_at_a_time(admin, other):
    asked = asyncio.Event()

    async def wait(_):
        asked.set()
        await asyncio.Event().wait()

    other.script = wait
    first = await start(admin, "reembed", embedder="openai:other")
    await asked.wait()
    second = await start(admin, "verify")
    assert (await admin.get(f"/v1/jobs/{second}")).json()["state"] == "waiting"
    await admin.post(f"/v1/jobs/{first}/cancel")
    verified = await ended(admin, second)
    assert (verified["state"], verified["report"]["clean"]) == ("done", True)
    assert verified["done"] == verified["total"] == verified["report"]["checked"] > 0
    assert verified["rate"] > 0
    assert verified["seconds_left"] is None


async def test_copy_leaves_the_server_with_its_store(running, admin, other, monkeypatch):
    target = MemoryStore()
    asked = []
    monkeypatch.setattr(jobs, "make_store", lambda *named: asked.append(named) or target)
    await target.start("other")
    copy = {"to": "chroma:/data/other", "to_collection": "c", "embedder": "openai:other"}
    job = await ended(admin, await start(admin, "copy", **copy))
    assert (job["state"], job["error"]) == ("done", None)
    assert asked == [("chroma:/data/other", "c")]
    report = job["report"]
    assert report["copied"] == report["chunks"] == job["done"] == job["total"] > 0
    assert other.closed
    # The server still has its own store, and its journal still belongs to it.
    assert (await ended(admin, await start(admin, "verify")))["report"]["clean"]
    await running.pipeline.accept(make_actions("s9", "ann opened billing", user="ann"))
    await running.pipeline.drain()
    assert running.pipeline.health.state == "ok"


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("reembed", {"embedder": "bert"}, "must be local, local:int8 or openai:MODEL"),
        ("reembed", {}, "embedder is missing"),
        ("reembed", {"embedder": "local", "render": "yes"}, "render must be true or false"),
        ("copy", {"to": "chroma:other", "embedder": "local"}, "must be an absolute path"),
        ("copy", {"to": "pg:/x", "embedder": "local"}, "store must be chroma:PATH"),
        ("copy", {"to": "chroma:/x", "embedder": ""}, "embedder is missing"),
        ("copy", {"to": "chroma:/x", "journal": "/y"}, "unknown options journal"),
        ("backup", {"folder": "copies"}, "must be an absolute path"),
    ],
)
async def test_options_that_cannot_be_used(admin, kind, options, said):
    job = await ended(admin, await start(admin, kind, **options))
    assert job["state"] == "failed"
    assert said in job["error"]


async def test_status_counts_and_measures(running, admin, tmp_path):
    status = (await admin.get("/v1/status")).json()
    assert status["ledger"]["received"] == running.pipeline.ledger.received == 10
    assert status["ledger"]["pending"] == 0
    assert status["health"] == {"state": "ok", "reasons": []}
    assert (status["running"], status["model"]) == (True, "scripted")
    assert (status["reembedding"], status["oldest_at"]) == (None, None)
    assert status["watermark"] == running.pipeline.watermark
    assert status["space"]["journal"] >= (tmp_path / "journal.db").stat().st_size
    assert status["space"]["free"] > 0


async def test_status_of_a_journal_in_memory(serve):
    async with serve() as running, running.client(KEYS.read) as read:
        await fill(running.pipeline)
        status = (await read.get("/v1/status")).json()
    assert status["ledger"]["stored"] == running.pipeline.ledger.stored == 10
    assert status["space"]["journal"] is None


async def test_dead_letters_come_in_pages(serve, make_pipeline):
    def broken(_):
        raise RuntimeError("a bug in the user's own rule")

    async with (
        serve(pipeline=make_pipeline(select=broken)) as running,
        running.client(KEYS.admin) as admin,
    ):
        for n in range(5):
            await running.pipeline.accept(make_actions(f"s{n}", "x"))
        seen, cursor = [], {}
        while cursor is not None:
            page = (await admin.get("/v1/dead-letters", params={"limit": 2} | cursor)).json()
            assert page["total"] == 5
            seen.append([letter["session_id"] for letter in page["dead_letters"]])
            cursor = page["next"] and {"cursor": page["next"]}
        assert seen == [["s0", "s1"], ["s2", "s3"], ["s4"]]
        assert (await admin.get("/v1/dead-letters?cursor=x")).status_code == 422


async def test_who_started_a_job_is_in_the_audit_log(running, admin):
    await ended(admin, await start(admin, "verify"))
    line = json.loads(running.audit[-1])
    assert (line["who"], line["route"]) == ("admin", "POST /v1/jobs")
    assert (line["scope"], line["status"]) == ({"job": "verify"}, 202)
