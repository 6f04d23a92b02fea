"""A loopback server that speaks OpenAI's embedding protocol and injects faults."""

from __future__ import annotations

import asyncio
import base64
import socket
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


class EmbeddingServer:
    """Speaks the protocol of OpenAI's `POST /v1/embeddings` on a loopback port.

    The vector of a text is `[bytes, first byte, 0.5]`, so that a test can match vectors to texts.
    `answer` replaces the answer. It receives the request's body and may return None for the usual
    answer.
    """

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/v1"
        self.asked = asyncio.Event()
        self.requests: list[dict[str, Any]] = []
        self.authorization: set[str | None] = set()
        self.shuffle = False
        self.floats = False
        self.max_bytes = 10**9
        self.answer: Callable[[dict[str, Any]], Response | None] = lambda body: None
        self.hang: asyncio.Event | None = None

    async def embeddings(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        self.asked.set()
        self.authorization.add(request.headers.get("authorization"))
        if self.hang is not None:
            await self.hang.wait()
        if (answer := self.answer(body)) is not None:
            return answer
        texts = body["input"]
        if not all(texts) or any(len(text.encode()) > self.max_bytes for text in texts):
            return error(400, "maximum context length is 8192 tokens", code=None)
        data = [
            {"object": "embedding", "index": i, "embedding": self.encode(vector_of(text), body)}
            for i, text in enumerate(texts)
        ]
        usage = {"prompt_tokens": 7 * len(texts), "total_tokens": 7 * len(texts)}
        return JSONResponse(
            {
                "object": "list",
                "data": data[::-1] if self.shuffle else data,
                "model": body["model"],
                "usage": usage,
            }
        )

    def encode(self, vector: list[float], body: dict[str, Any]) -> str | list[float]:
        if self.floats or body.get("encoding_format") != "base64":
            return vector
        return base64.b64encode(array("f", vector).tobytes()).decode()


def vector_of(text: str) -> list[float]:
    encoded = text.encode()
    return [float(len(encoded)), float(encoded[0]), 0.5]


def error(status: int, message: str, code: str | None, headers: Any = None) -> Response:
    body = {"error": {"message": message, "type": "t", "param": None, "code": code}}
    return JSONResponse(body, status_code=status, headers=headers)


@asynccontextmanager
async def serving(listening: socket.socket) -> AsyncIterator[EmbeddingServer]:
    """Serve on a socket that is already bound. Until then, connections are refused."""
    found = EmbeddingServer(listening.getsockname()[1])
    app = Starlette(routes=[Route("/v1/embeddings", found.embeddings, methods=["POST"])])
    config = uvicorn.Config(app, log_level="error", lifespan="off", ws="none")
    uvicorn_server = uvicorn.Server(config)
    task = asyncio.create_task(uvicorn_server.serve(sockets=[listening]))
    try:
        yield found
    finally:
        if found.hang is not None:
            found.hang.set()
        uvicorn_server.should_exit = True
        await task


@pytest.fixture
async def embedding_server() -> AsyncIterator[EmbeddingServer]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        async with serving(listening) as found:
            yield found
