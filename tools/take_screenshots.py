"""Take the pictures of the inspector in docs/images, of `autoplay-rag serve --samples`.

Usage: take_screenshots.py [--minutes M] [FOLDER]

The plots show the last hour, so the server runs for as long first.
"""
# ruff: noqa: INP001 - a script, not part of a package

from __future__ import annotations

import argparse
import io
import os
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from chromium import ARGUMENTS, MISSING, find_chromium
from PIL import Image
from playwright.sync_api import Browser, expect, sync_playwright

QUESTION = "Whose promo code had expired?"
PAGES = {"overview": "/", "search": f"/search?q={QUESTION.replace(' ', '+')}"}
SIZES = {"": (1280, 800), "-390": (390, 800)}


def main() -> None:
    """Serve, wait, and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("docs/images"))
    parser.add_argument(
        "--minutes", type=float, default=62.0, help="how long the server runs first"
    )
    given = parser.parse_args()
    if (chromium := find_chromium()) is None:
        sys.exit(MISSING)
    given.folder.mkdir(parents=True, exist_ok=True)
    key = secrets.token_hex(16)
    command = [sys.executable, "-m", "autoplay_rag", "serve", "--samples", "--port", "0"]
    environment = {**os.environ, "AUTOPLAY_RAG_ADMIN_KEY": key, "PYTHONUNBUFFERED": "1"}
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(  # noqa: S603 - our own command
            command, stdout=subprocess.PIPE, stderr=log, env=environment
        ) as server,
    ):
        try:
            assert server.stdout is not None  # PIPE
            url = server.stdout.readline().decode().removeprefix("serving ").strip()
            time.sleep(given.minutes * 60)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
                take(browser, f"{url}/?key={key}", given.folder)
                browser.close()
        finally:
            server.terminate()


def take(browser: Browser, address: str, folder: Path) -> None:
    """Take each page in both schemes, wide and narrow."""
    for scheme in ("light", "dark"):
        for suffix, (width, height) in SIZES.items():
            page = browser.new_page(
                viewport={"width": width, "height": height},
                color_scheme="dark" if scheme == "dark" else "light",
                reduced_motion="reduce",
            )
            page.goto(address)
            for name, path in PAGES.items():
                page.goto(address.partition("/?")[0] + path)
                expect(page.locator("#live .word")).to_have_text("Live")
                save(page.screenshot(), folder / f"inspector-{name}-{scheme}{suffix}.png")
            page.close()


def save(picture: bytes, path: Path) -> None:
    """Save a picture with at most 256 colours, which takes a third of the space."""
    with Image.open(io.BytesIO(picture)) as opened:
        fewer = opened.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    fewer.save(path, optimize=True)


if __name__ == "__main__":
    main()
