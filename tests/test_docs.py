"""Every block of Python in the README and eight recipes runs against a local connector."""

import asyncio
import re
import sys
from pathlib import Path

import pytest

from autoplay_rag.devserver import LocalConnector

ROOT = Path(__file__).parents[1]
RUNNER = ROOT / "tests" / "run_block.py"
PLACEHOLDER = "https://connector.example.com/stream/acme"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PAGES = [ROOT / "README.md", ROOT / "docs" / "recipes" / "own-store.md"]
PAGES += [
    ROOT / "docs" / "recipes" / f"{name}.md"
    for name in (
        "another-model",
        "backup",
        "forgetting",
        "own-embedder",
        "own-text",
        "production",
        "search",
        "reading",
    )
]


def blocks():
    for page in PAGES:
        text = page.read_text()
        for found in BLOCK.finditer(text):
            line = text.count("\n", 0, found.start()) + 2
            yield pytest.param(found[1], id=f"{page.name}:{line}")


async def run_block(code: str, folder: Path, python: str | Path) -> None:
    """Run a block as its reader would, with the samples."""
    path = folder / "block.py"
    async with LocalConnector() as connector:
        # A reader's stream may need a minute of silence; the local connector ends sooner.
        code = code.replace(PLACEHOLDER, connector.url).replace("idle_seconds=60", "idle_seconds=3")
        path.write_text(code.replace("idle=60", "idle=3"))
        process = await asyncio.create_subprocess_exec(
            python,
            "-W",
            "error",
            RUNNER,
            path,
            cwd=folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 50)
    assert process.returncode == 0, err.decode()
    assert b"Traceback" not in err
    assert b"never retrieved" not in out + err


@pytest.mark.slow
@pytest.mark.parametrize("code", list(blocks()))
async def test_it_runs(code, tmp_path):
    await run_block(code, tmp_path, sys.executable)


DSN = "postgresql://app@db.example.com/app"


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3))
async def test_the_recipe_for_postgres_runs(number, postgres, tmp_path):
    text = (ROOT / "docs" / "recipes" / "postgres.md").read_text()
    found = BLOCK.findall(text)
    assert len(found) == 3
    postgres.run("DROP SCHEMA IF EXISTS autoplay CASCADE")
    assert DSN in found[number]
    await run_block(found[number].replace(DSN, postgres.dsn), tmp_path, sys.executable)


CONTRACT = re.compile(r"^```python test\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["store", "embedder"])
async def test_the_example_of_a_recipe_passes_its_contract(name, tmp_path):
    text = (ROOT / "docs" / "recipes" / f"own-{name}.md").read_text()
    (example,), (test,) = BLOCK.findall(text), CONTRACT.findall(text)
    (tmp_path / f"my_{name}.py").write_text(example)
    (tmp_path / f"test_my_{name}.py").write_text(test)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
        "filterwarnings = error\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pytest", "-q", cwd=tmp_path, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), 50)
    assert process.returncode == 0, out.decode()


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith(("http://", "https://")):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
