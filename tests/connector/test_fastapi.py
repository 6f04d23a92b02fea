"""The client in a web application: its lifespan starts and stops the client."""

import asyncio
from contextlib import asynccontextmanager

import httpx
import uvicorn
from fastapi import FastAPI

from autoplay_rag.connector.client import AsyncConnectorClient


def application(url, seen):
    async def remember(payload):
        seen.append(payload.to_text())

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        async with AsyncConnectorClient(url).on_actions(remember) as client:
            client.run_in_background()
            app.state.client = client
            yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/health")
    async def health():
        client = app.state.client
        return {"stream": client.state, "pending": client.pending}

    return app


async def test_the_lifespan_starts_and_stops_the_client(server, event, until):
    server.script(server.stream(event("s1", 1)))
    seen = []
    app = application(server.url, seen)
    async with app.router.lifespan_context(app):
        await until(lambda: bool(seen))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as http:
            assert (await http.get("/health")).json() == {"stream": "connected", "pending": 0}
    assert app.state.client.state == "stopped"
    assert seen == ["Session s1 — 1 actions\n[1] click:  — "]


async def test_under_a_real_server(server, event, until):
    server.script(server.stream(event("s1", 1)))
    seen = []
    app = application(server.url, seen)
    web = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    serving = asyncio.create_task(web.serve())
    await until(lambda: web.started and bool(seen))
    port = web.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient() as http:
        answer = await http.get(f"http://127.0.0.1:{port}/health")
    assert answer.json()["stream"] == "connected"
    web.should_exit = True
    await serving
    assert app.state.client.state == "stopped"


async def test_a_connector_that_refuses_does_not_end_the_application(server, until, caplog):
    server.script(server.status(401))
    app = application(server.url, [])
    async with app.router.lifespan_context(app):
        await until(lambda: app.state.client.state == "failed")
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://app"
        ) as http:
            assert (await http.get("/health")).json()["stream"] == "failed"
    assert "401" in caplog.text
