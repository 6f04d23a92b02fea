"""Every cell of the notebooks runs, twice in a row; the committed outputs are presentable."""

import asyncio
import getpass
import os
import re
import runpy
import socket
from pathlib import Path

import nbformat
import pytest

from autoplay_rag import to_frame
from autoplay_rag.connector.recording import read_recording
from autoplay_rag.devserver import samples

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECONDS = 120
MAX_BYTES = 400_000
# LlamaIndex imports langchain_community if installed, which warns that it is not maintained.
# LlamaIndex's chat memory leaves closing its database to the garbage collector.
WARNINGS = (
    "default,ignore::DeprecationWarning:llama_index.core.bridge.langchain"
    ",ignore::ResourceWarning:aiosqlite.core"
)

run = runpy.run_path(str(ROOT / "tools" / "run_notebooks.py"))["run"]

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def said_on_stderr(notebook):
    return [
        output.text
        for cell in code_cells(notebook)
        for output in cell.outputs
        if output.output_type == "stream" and output.name == "stderr"
    ]


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 30)
@each
async def test_every_cell_runs_twice_in_a_row(path, tmp_path):
    notebook = read(path)
    for cell in code_cells(notebook):
        again = nbformat.from_dict(cell)
        again.id += "-again"
        notebook.cells.insert(notebook.cells.index(cell) + 1, again)
    # Without API keys the scripted model answers; all warnings are shown.
    env = {k: v for k, v in os.environ.items() if not k.endswith(("_API_KEY", "_TOKEN"))}
    env |= {"PYTHONWARNINGS": WARNINGS, "IPYTHONDIR": str(tmp_path / "ipython")}
    folder = tmp_path / "work"
    folder.mkdir()

    async with asyncio.timeout(SECONDS):
        await run(notebook, folder, env)

    assert said_on_stderr(notebook) == []
    assert not list(folder.iterdir()), "a notebook leaves files where it is run"


@each
def test_it_was_committed_as_it_ran_from_top_to_bottom(path):
    cells = code_cells(read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert said_on_stderr(read(path)) == []
    assert len(outputs) >= len(cells) / 2


@each
def test_it_says_nothing_of_the_machine_it_ran_on(path):
    notebook = read(path)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    text = re.sub(r'"image/png": "[^"]*"', "", path.read_text())
    folders = {"/home/", "/root/", "/tmp/", "/Users/", "\\\\Users\\\\", str(ROOT), str(Path.home())}
    assert [folder for folder in folders if folder in text] == []
    names = {getpass.getuser(), socket.gethostname()} - {"root", "localhost"}
    assert [name for name in names if re.search(rf"\b{re.escape(name)}\b", text)] == []


@each
def test_it_is_small(path):
    assert path.stat().st_size < MAX_BYTES


@each
def test_its_links_lead_somewhere(path):
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)#]+)\)", cell.source):
                assert (path.parent / target).exists(), target


@each
def test_its_pictures_have_no_background_of_their_own(path):
    """The colours of the plots are legible on a light page and on a dark one."""
    for cell in code_cells(read(path)):
        for output in cell.outputs:
            assert "needs_background" not in output.get("metadata", {})


def test_the_readme_names_them_all():
    readme = (ROOT / "README.md").read_text()
    assert len(NOTEBOOKS) == 6
    assert [path.name for path in NOTEBOOKS if f"(notebooks/{path.name})" not in readme] == []


def test_the_answer_of_the_analyst_is_true_of_the_samples():
    """Found by wider words than those of the notebook, in the recording itself."""
    taken = "export|download|print|schedule|destination|hubspot|sheet"
    failed = "could not|not deliver|fail|error|refused|timed out|not allowed|denied"
    actions = to_frame(read_recording(samples()))
    clicks = actions[(actions.type == "click") & actions.title.str.contains(taken, case=False)]
    began = actions.session_id.map(clicks.groupby("session_id").started_at.min())
    messages = actions[(actions.type == "message") & (actions.started_at > began)]
    stuck = messages[messages.description.str.contains(failed, case=False)]
    people = dict(zip(stuck.session_id, stuck.user_id, strict=True))
    assert people == {"ps_20391c81f00c": "u_022", "ps_c738b954e29b": "u_010"}

    notebook = read(ROOT / "notebooks" / "06-analyst.ipynb")
    (answer,) = [cell.source for cell in notebook.cells if "## The answer" in cell.source]
    assert set(re.findall(r"u_\d+", answer)) == set(people.values())
