"""What holds for every test: no task may outlive it."""

from __future__ import annotations

import asyncio
import inspect

import pytest


@pytest.fixture(autouse=True)
def _tasks_are_checked(request):
    """For async tests alone; set up first, so that all other fixtures end before it looks."""
    if inspect.iscoroutinefunction(getattr(request.node, "obj", None)):
        request.getfixturevalue("no_leaked_tasks")


@pytest.fixture
async def no_leaked_tasks():
    """Fails a test that leaves a task behind."""
    yield
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    if tasks:
        # Those that are ending anyway (a server's connections, say) get a moment.
        _, tasks = await asyncio.wait(tasks, timeout=2)
    assert not tasks, f"tasks left running: {tasks}"
