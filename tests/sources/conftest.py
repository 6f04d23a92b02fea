"""Fixtures of the tests of sources."""

import asyncio

import pytest
from pull_server import server  # noqa: F401 - a fixture


@pytest.fixture
def collected():
    """A callback that keeps payloads, and a way to wait for a number of actions."""
    return Collected()


class Collected:
    def __init__(self) -> None:
        self.payloads = []
        self.came = asyncio.Condition()

    async def __call__(self, payload):
        self.payloads.append(payload)
        async with self.came:
            self.came.notify_all()

    @property
    def titles(self):
        return [action.title for payload in self.payloads for action in payload.actions]

    async def wait(self, actions):
        async with asyncio.timeout(30), self.came:
            await self.came.wait_for(lambda: len(self.titles) >= actions)
