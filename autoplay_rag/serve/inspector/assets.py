"""The files of `static/`: read once, named by their content, so that browsers may keep them."""

from __future__ import annotations

from hashlib import blake2b
from importlib.resources import files
from typing import Final

__all__ = ["ASSETS", "asset_path"]

_TYPES: Final = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


def _read() -> dict[str, tuple[bytes, str, str]]:
    found = {}
    for file in files("autoplay_rag.serve.inspector").joinpath("static").iterdir():
        kind = _TYPES.get(file.name.rpartition(".")[2])
        if kind is not None:
            content = file.read_bytes()
            found[file.name] = (content, kind, blake2b(content, digest_size=6).hexdigest())
    return found


ASSETS: Final = _read()
"""Content, media type and version of each file, by name."""


def asset_path(name: str) -> str:
    """Return the address of a file, relative to the overview."""
    return f"static/{name}?v={ASSETS[name][2]}"
