"""Links lead to files and headings, every page is in the navigation, every public name has an entry."""

import importlib
import json
import re
from pathlib import Path

import pytest
import yaml
from test_public_names import NAMES

from tools.docs_site.links import broken_links
from tools.docs_site.staging import places

ROOT = Path(__file__).parents[1]
MARKDOWN = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("integrations/*/*.md")]
)
INTEGRATIONS = ("langchain_autoplay", "llama_index.readers.autoplay")
ENTRY = re.compile(r"^::: (\S+)$", re.MULTILINE)


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_links_of_a_page_lead_somewhere(page):
    assert list(broken_links(page.read_text(), page.relative_to(ROOT).as_posix(), ROOT)) == []


@pytest.mark.parametrize("notebook", sorted(ROOT.glob("notebooks/*.ipynb")), ids=lambda n: n.name)
def test_the_links_of_a_notebook_lead_somewhere(notebook):
    cells = json.loads(notebook.read_text())["cells"]
    text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    assert list(broken_links(text, f"notebooks/{notebook.name}", ROOT)) == []


class Settings(yaml.SafeLoader):
    """Reads the settings of the site; what they call is of no interest here."""


Settings.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def pages_in(entry):
    if isinstance(entry, str):
        yield entry
    for one in (
        entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ()
    ):
        yield from pages_in(one)


def test_the_navigation_has_every_page_once():
    nav = yaml.load((ROOT / "mkdocs.yml").read_text(), Settings)["nav"]
    pages = [page for page in places(ROOT).values() if page.endswith(".md")]
    assert sorted(pages_in(nav)) == sorted(pages)


def entries():
    for page in ROOT.glob("docs/reference/python/*.md"):
        yield from ENTRY.findall(page.read_text())


def value_of(path):
    try:
        return importlib.import_module(path)
    except ImportError:
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(module), name)


def test_every_public_name_has_one_entry_in_the_reference():
    names = dict(NAMES) | {
        module: importlib.import_module(module).__all__ for module in INTEGRATIONS
    }
    public = {id(value_of(f"{module}.{name}")) for module in names for name in names[module]}
    given = [id(value_of(path)) for path in entries() if path != "autoplay_rag.errors"]
    assert len(given) == len(set(given))
    assert set(given) == public
