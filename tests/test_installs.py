"""Each section of the README works in a virtual environment with only the packages it names."""

from __future__ import annotations

import asyncio
import re
import shlex
import sys
from pathlib import Path

import pytest
from test_docs import BLOCK, ROOT, run_block

NEEDS = re.compile(r"^Needs `pip install (.+?)`", re.MULTILINE)
# Creating an environment and installing Chroma takes a minute on a busy machine.
INSTALLING = 280


def sections():
    for section in (ROOT / "README.md").read_text().split("\n## ")[1:]:
        if blocks := BLOCK.findall(section):
            title = section.partition("\n")[0]
            yield pytest.param(NEEDS.findall(section), blocks, id=title)


async def run(*command: str | Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), INSTALLING)
    except BaseException:
        process.kill()
        raise
    assert process.returncode == 0, out.decode()[-2000:]


@pytest.mark.slow
@pytest.mark.timeout(2 * INSTALLING)
@pytest.mark.parametrize(("needs", "blocks"), list(sections()))
async def test_a_section_names_all_that_its_blocks_need(needs, blocks, tmp_path):
    [packages] = needs
    python = tmp_path / "venv" / "bin" / "python"
    await run(sys.executable, "-m", "venv", tmp_path / "venv")
    await run(python, "-m", "pip", "install", "-q", "-c", "constraints.txt", *shlex.split(packages))
    for code in blocks:
        await run_block(code, tmp_path, python)
