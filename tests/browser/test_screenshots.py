"""The tool that takes the pictures of the README still does."""

import asyncio
import sys
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "take_screenshots.py"


@pytest.mark.timeout(120)
async def test_it_takes_each_page_in_both_schemes_and_widths(chromium, tmp_path):
    command = [sys.executable, TOOL, "--minutes", "0", tmp_path]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    _, err = await asyncio.wait_for(process.communicate(), 110)
    assert process.returncode == 0, err.decode()
    pictures = sorted(path.name for path in tmp_path.iterdir())
    assert len(pictures) == 8
    for name in pictures:
        with Image.open(tmp_path / name) as picture:
            assert picture.size == (390 if name.endswith("-390.png") else 1280, 800)
    # Those in the repository are of the same pages.
    assert {path.name for path in (ROOT / "docs" / "images").iterdir()} <= set(pictures)
