"""The recipe docs/recipes/kafka-relay.md: its programs run, and what they write is what a pipeline reads."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from autoplay_rag.devserver import LocalConnector, samples
from autoplay_rag.kafka.messages import key_of, message_of, payload_of
from autoplay_rag.payloads import ActionsPayload

PAGE = Path(__file__).parents[2] / "docs" / "recipes" / "kafka-relay.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
STREAM = "https://connector.example.com/stream/acme"


def run(code, folder, broker, topic):
    for written, here in (
        ("broker.example.com:9092", broker.bootstrap),
        ('"events"', f'"{topic}"'),
    ):
        assert written in code
        code = code.replace(written, here)
    (folder / "block.py").write_text(code)
    return subprocess.run(
        [sys.executable, "-W", "error", "block.py"],
        cwd=folder,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout


@pytest.mark.slow
async def test_the_relay_of_a_program(broker, topic, tmp_path, reader):
    import asyncio

    async with LocalConnector() as connector:
        code = BLOCKS[0].replace(STREAM, connector.url)
        printed = await asyncio.to_thread(run, code, tmp_path, broker, topic)
    outcome, delivered = printed.split()
    assert outcome == "accepted"
    count = len(samples().read_text().splitlines()) + 1
    assert int(delivered) == count
    assert len(await reader.payloads(count)) == count


async def test_another_program_writes_what_a_pipeline_reads(broker, topic, tmp_path, reader):
    run(BLOCKS[1], tmp_path, broker, topic)
    (message,) = await reader.messages(bool)
    payload = payload_of(message.value())
    assert isinstance(payload, ActionsPayload)
    assert payload.actions[0].title == "Export"
    assert message.key() == key_of("acme", "s1")
    assert tuple(message.headers()) == message_of(payload).headers


def test_all_blocks_are_run():
    assert len(BLOCKS) == 2
