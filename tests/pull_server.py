"""A pull endpoint over real HTTP whose answers are scripted, and counted."""

from __future__ import annotations

import asyncio
from urllib.parse import unquote

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from autoplay_rag.devserver.serving import ConnectorServer


class PullServer:
    """Answers with the actions in `actions`; `script` may answer instead."""

    def __init__(self) -> None:
        self.url = ""
        self.as_of = 2_000_000_000.0
        self.actions: dict[str, list[dict]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.script = lambda user, headers: None
        self.in_flight = self.most_in_flight = 0
        self.came = asyncio.Condition()
        self.over = asyncio.Event()

    async def hang(self):
        """Give no answer until the test is over."""
        await self.over.wait()

    def click(self, user, title, at, **fields):
        action = {"type": "click", "title": title, "description": f"User clicked {title}"}
        action |= {"timestamp_start": at, "timestamp_end": at, "canonical_url": "https://a.test/p"}
        self.actions.setdefault(user, []).append(action | fields)

    async def wait(self, count, user=None):
        """Wait until this many requests were answered."""
        async with asyncio.timeout(30), self.came:
            await self.came.wait_for(
                lambda: sum(user in (None, one) for one, _ in self.requests) >= count
            )

    async def respond(self, request):
        user = unquote(request.scope["raw_path"].decode().split("/")[3])
        self.in_flight += 1
        self.most_in_flight = max(self.in_flight, self.most_in_flight)
        headers = dict(request.headers)
        try:
            answer = self.script(user, headers)
            if asyncio.iscoroutine(answer):
                answer = await answer
        finally:
            self.in_flight -= 1
        self.requests.append((user, headers))
        async with self.came:
            self.came.notify_all()
        if answer is not None:
            return answer
        actions = self.actions.get(user, [])[-50:]
        return JSONResponse(
            {
                "product_id": "acme",
                "user_id": user,
                "count": len(actions),
                "as_of": self.as_of,
                "actions": actions,
            }
        )


@pytest.fixture
async def server():
    made = PullServer()
    http = ConnectorServer(Starlette(routes=[Route("/users/{path:path}", made.respond)]))
    made.url = f"http://127.0.0.1:{await http.listen('127.0.0.1', 0)}"
    yield made
    made.over.set()
    await http.aclose()
