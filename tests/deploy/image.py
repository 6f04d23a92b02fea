"""A Dockerfile run without Docker: each step in a plain folder instead of an image.

`build` copies what COPY copies and runs what RUN runs. Paths of the image (`/opt`, `/data`, ...) become
paths below the folder, in every command, variable and file. `Image.start` then starts a command as a
container would, as far as this machine allows: as its user, as process 1, with a root file system that
cannot be written, on another port. Not covered: the base image itself, and what Docker does with networks.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
INSTALLING = 280

_IMAGE_PATH = re.compile(r"(?<![\w./-])/(?:opt|src|data|etc/autoplay-rag|run/secrets|tmp)\b")
_CONTAINED = """
set -e
mount --make-rprivate /
for folder in $WRITABLE; do mount --bind $folder $folder; done
mount -o remount,bind,ro /
cd "$FOLDER"
exec setpriv --reuid=$OWNER --regid=$GROUP --clear-groups --no-new-privs --bounding-set=-all \\
    --inh-caps=-all env --ignore-environment "$@"
"""


def instructions(text: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, each with the text after its name."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    found = (line.split(maxsplit=1) for line in joined.splitlines() if line.strip())
    return [(name.upper(), rest.strip()) for name, rest in found]


def python_of_everyone() -> str:
    """A Python 3.11 or later that another user may run, or else the one of the tests."""
    names = ("python3.12", "python3.11", "python3.13", "python3")
    folders = os.environ["PATH"].split(os.pathsep)
    elsewhere = (Path(folder, name) for name in names for folder in folders)
    for found in (Path(sys._base_executable), *elsewhere):
        path = found.resolve()
        if not path.is_file() or not all(
            each.stat().st_mode & stat.S_IXOTH for each in (path, *path.parents)
        ):
            continue
        check = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))"
        if subprocess.run([path, "-c", check], check=False, capture_output=True).returncode == 0:
            return str(path)
    return sys._base_executable


def can_contain() -> bool:
    """Whether this process may make name spaces and change its user."""
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("setpriv"):
        return False
    trial = ["unshare", "--mount", "--pid", "--fork", "sh", "-c", "mount --make-rprivate /"]
    return subprocess.run(trial, check=False, capture_output=True).returncode == 0


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@dataclass
class Image:
    """The last stage of a Dockerfile.

    Attributes:
        root: The folder with its files.
        env: The variables of ENV.
        user: The user and the group.
        folder: The folder of WORKDIR.
        port: A free port of this machine, instead of 8760.
        entrypoint, command, healthcheck: As in the Dockerfile.
    """

    root: Path
    env: dict[str, str] = field(default_factory=dict)
    user: tuple[int, int] = (0, 0)
    folder: str = "/"
    port: int = field(default_factory=_free_port)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)

    def here(self, text: str) -> str:
        """The text with the paths and the port of the image as those on this machine."""
        text = re.sub(r"\b8760\b", str(self.port), text)
        return _IMAGE_PATH.sub(lambda found: f"{self.root}{found[0]}", text)

    def path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def variables(self, more: dict[str, str]) -> dict[str, str]:
        given = {name: self.here(value) for name, value in (self.env | more).items()}
        return given | {"TMPDIR": str(self.path("/tmp"))}

    def start(self, command: list[str], env: dict[str, str]) -> Container:
        """Start a command with the image's entry point, and variables besides the image's own."""
        words = [self.here(word) for word in self.entrypoint + command]
        if command[0] == "serve":
            words += ["--port", str(self.port)]
        variables = self.variables(env)
        process = subprocess.Popen(
            [*self._contained(), *(f"{n}={v}" for n, v in variables.items()), *words],
            cwd=self.path(self.folder),
            env={
                "PATH": os.environ["PATH"],
                "WRITABLE": f"{self.path('/data')} {self.path('/tmp')}",
                "FOLDER": str(self.path(self.folder)),
                "OWNER": str(self.user[0]),
                "GROUP": str(self.user[1]),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return Container(process, contained=can_contain())

    def check(self) -> int:
        """Run the health check once, and return its exit code."""
        words = [self.here(word) for word in self.healthcheck]
        env = self.variables({})
        words[0] = shutil.which(words[0], path=env["PATH"])
        return subprocess.run(words, env=env, check=False, capture_output=True).returncode

    def _contained(self) -> list[str]:
        if not can_contain():
            return ["env", "--ignore-environment"]
        flags = ["--mount", "--pid", "--fork", "--kill-child"]
        return ["unshare", *flags, "sh", "-c", _CONTAINED, "sh"]


class Container:
    """A started command."""

    def __init__(self, process: subprocess.Popen[str], *, contained: bool) -> None:
        self.process = process
        self._contained = contained
        self.output = ""

    def line(self, containing: str) -> str:
        """Read lines up to one with this text."""
        for line in self.process.stdout:
            self.output += line
            if containing in line:
                return line.rstrip("\n")
        raise AssertionError(f"it ended without {containing!r}: {self.output[-2000:]}")

    @property
    def pid(self) -> int:
        """The command's process: the one in its name space that has the number 1."""
        if not self._contained:
            return self.process.pid
        parent = self.process.pid
        (child,) = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return int(child)

    def stop(self) -> int:
        """Stop it as Docker does; return the exit code."""
        os.kill(self.pid, signal.SIGTERM)
        rest, _ = self.process.communicate(timeout=50)
        self.output += rest
        return self.process.returncode

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()  # unshare takes its child with it
            self.process.communicate()


def build(dockerfile: Path, context: Path, folder: Path) -> Image:
    """Run the steps of a Dockerfile. The stages have the folder `root` in turn."""
    arguments: dict[str, str] = {}
    stages: dict[str, Path] = {}
    image = Image(folder / "root")
    name = ""
    for instruction, given in instructions(dockerfile.read_text()):
        text = re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], given)
        if instruction == "ARG":
            key, _, value = text.partition("=")
            arguments[key] = value
        elif instruction == "FROM":
            if image.root.exists():
                # Scripts in it name the folder that it had, and the next stage has it again.
                stages[name] = image.root.rename(folder / f"stage-{name}")
            name = text.partition(" AS ")[2]
            image = Image(folder / "root")
            _base(image)
        elif instruction == "COPY":
            _copy(image, shlex.split(text), context, stages)
        elif instruction == "RUN":
            _run(image, text)
        else:
            _set(image, instruction, text)
    return image


def _set(image: Image, instruction: str, text: str) -> None:
    if instruction == "WORKDIR":
        image.folder = text
        image.path(text).mkdir(parents=True, exist_ok=True)
    elif instruction == "ENV":
        image.env |= dict(word.split("=", 1) for word in shlex.split(text))
    elif instruction == "USER":
        image.user = tuple(map(int, text.split(":")))
    elif instruction == "ENTRYPOINT":
        image.entrypoint = json.loads(text)
    elif instruction == "CMD":
        image.command = json.loads(text)
    elif instruction == "HEALTHCHECK":
        image.healthcheck = json.loads(text.partition(" CMD ")[2])
    else:
        assert instruction in ("EXPOSE", "VOLUME"), instruction


def _base(image: Image) -> None:
    """What the base image is: a Python, and an empty folder for temporary files."""
    binary = image.path("/opt/base/bin/python")
    binary.parent.mkdir(parents=True)
    binary.write_text(f'#!/bin/sh\nexec {python_of_everyone()} "$@"\n')
    binary.chmod(0o755)
    image.path("/tmp").mkdir()
    image.path("/tmp").chmod(0o1777)


def _copy(image: Image, words: list[str], context: Path, stages: dict[str, Path]) -> None:
    source = context
    if words[0].startswith("--from="):
        source = stages[words.pop(0).removeprefix("--from=")]
    *names, target = words
    into = image.path(target) if target.startswith("/") else image.path(image.folder) / target
    for name in names:
        path = source / name.lstrip("/")
        if path.is_dir():
            is_stage = source != context
            shutil.copytree(
                path,
                into,
                symlinks=True,
                dirs_exist_ok=True,
                ignore=None if is_stage else shutil.ignore_patterns("__pycache__"),
                # What a stage made does not change any more: a link is as good, and quick.
                copy_function=os.link if is_stage else shutil.copy2,
            )
        else:
            into.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, into)


def _run(image: Image, text: str) -> None:
    path = f"{image.path('/opt/base/bin')}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", image.here(text)],
        cwd=image.path(image.folder),
        # Where the packages come from is a setting of the machine.
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=INSTALLING,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
