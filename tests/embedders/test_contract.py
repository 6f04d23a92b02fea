"""Every embedder of the package passes the public contract."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest
from embedding_server import serving

from autoplay_rag.embedders import LocalEmbedder, OpenAIEmbedder
from autoplay_rag.testing import EmbedderContract


class TestLocalEmbedder(EmbedderContract):
    @pytest.fixture
    def make_embedder(self):
        return lambda: LocalEmbedder(threads=1)


class TestLocalEmbedderInt8(EmbedderContract):
    @pytest.fixture
    def make_embedder(self):
        return lambda: LocalEmbedder(threads=1, precision="int8")


@pytest.fixture(scope="module")
def url():
    """Run the server in a thread, so that a test may run several event loops."""
    started, ending = threading.Event(), threading.Event()
    urls = []

    async def serve():
        with socket.create_server(("127.0.0.1", 0)) as listening:
            async with serving(listening) as server:
                urls.append(server.url)
                started.set()
                await asyncio.to_thread(ending.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(20)
    yield urls[0]
    ending.set()
    thread.join(20)


class TestOpenAIEmbedder(EmbedderContract):
    @pytest.fixture
    def make_embedder(self, url):
        return lambda: OpenAIEmbedder(base_url=url, api_key="sk-of-a-test")


class TestLangChainEmbeddings(EmbedderContract):
    @pytest.fixture
    def make_embedder(self):
        class Lengths:
            model = "lengths"

            def embed_documents(self, texts):
                return [self.embed_query(text) for text in texts]

            def embed_query(self, text):
                return [float(len(text)), 1.0]

        return Lengths
