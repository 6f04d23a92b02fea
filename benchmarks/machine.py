"""What a run of the benchmarks ran on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["machine"]

PACKAGES = (
    "chromadb",
    "onnxruntime",
    "autoplay-sdk",
    "langchain-core",
    "langchain-chroma",
    "llama-index-core",
)


def machine() -> str:
    """Return the processor, its cores, VNNI, memory, Python and packages, in one line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    vnni = "with VNNI" if "vnni" in _field("/proc/cpuinfo", "flags") else "without VNNI"
    memory = _field("/proc/meminfo", "MemTotal").removesuffix(" kB")
    parts = [
        _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        f"{cores} cores",
        vnni,
        f"{int(memory) / 2**20:.0f} GiB" if memory.isdigit() else "unknown memory",
        f"{platform.system()} {platform.machine()}",
        f"{platform.python_implementation()} {platform.python_version()}",
        *(f"{name} {_version(name)}" for name in PACKAGES),
    ]
    return ", ".join(parts)


def _field(path: str, name: str) -> str:
    """Return the first value of a name in a file of `name: value`; "" if there is none."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    found = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in found if key.strip() == name), "")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
