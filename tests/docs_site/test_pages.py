"""What the site is made of: notebooks, generated references, the staged folder, the finished pages."""

import json
import re
from pathlib import Path

import pytest

from autoplay_rag.serve.building import ROUTERS
from autoplay_rag.serve.mcp.tools import TOOLS
from tools.docs_site.built import problems_of
from tools.docs_site.commands import command_reference
from tools.docs_site.http_api import http_reference
from tools.docs_site.mcp_tools import mcp_reference
from tools.docs_site.metrics import metrics_reference
from tools.docs_site.notebooks import notebook_page
from tools.docs_site.staging import stage

ROOT = Path(__file__).parents[2]


def notebook(*cells):
    return json.dumps({"cells": list(cells)})


def code(source, *outputs):
    return {"cell_type": "code", "source": source, "outputs": list(outputs)}


def test_a_notebook_is_a_page_with_its_outputs(tmp_path):
    path = tmp_path / "first.ipynb"
    path.write_text(
        notebook(
            {"cell_type": "markdown", "source": ["# Title\n", "\n", "Text."]},
            code(
                "print('a')\nplot()",
                {"output_type": "stream", "text": ["\x1b[1ma\x1b[0m\n"]},
                {"output_type": "display_data", "data": {"image/png": "aGk="}},
            ),
            code("frame", {
                "output_type": "execute_result",
                "data": {
                    "text/html": '<style>x</style><table border="1">\n\n<tr><td>1</td></tr></table>',
                    "text/plain": "1",
                },
            }),
            code("s", {"output_type": "execute_result", "data": {"text/plain": ["'```'"]}}),
        )
    )  # fmt: skip
    page, images = notebook_page(path)
    assert page.startswith("# Title\n\nThis page is a notebook: [first.ipynb](first.ipynb)")
    assert "Text.\n\n```python\nprint('a')\nplot()\n```\n\n```{ .text .output }\na\n```" in page
    assert images == {"first-1.png": b"hi"}
    assert "](first-1.png)" in page
    assert '<div class="output" tabindex="0"><table>\n<tr><td>1</td></tr></table></div>' in page
    assert "````{ .text .output }\n'```'\n````" in page


def test_every_route_is_in_the_http_reference():
    text = http_reference()
    described = set(re.findall(r"^### ((?:GET|POST) \S+)$", text, re.MULTILINE))
    routes = {
        f"{method} {route.path_format}"
        for router in ROUTERS
        for route in router.routes
        if route.include_in_schema
        for method in route.methods
    }
    assert described == routes
    assert "| `k` | integer (1 to 100) | `5` |" in text
    forgetting = text.partition("### POST /v1/forget\n")[2]
    assert "Needs an admin key." in forgetting.partition("###")[0]


def test_the_types_that_are_linked_are_described():
    text = http_reference()
    linked = set(re.findall(r"\]\(#(\w+)\)", text))
    assert linked <= {name.lower() for name in re.findall(r"^### (\w+)$", text, re.MULTILINE)}


def test_every_tool_is_in_the_mcp_reference_and_its_types_too():
    text = mcp_reference()
    assert set(re.findall(r"^## (\w+)$", text, re.MULTILINE)) == {*TOOLS, "Types"}
    assert "| `query` | string (1 to 2,000 characters) | required | What to look for" in text
    assert text.count("Under a token the call has no `user_id` or `product_id`:") == len(TOOLS)
    linked = set(re.findall(r"\]\(#(\w+)\)", text))
    assert linked == {name.lower() for name in re.findall(r"^### (\w+)$", text, re.MULTILINE)}


def test_every_metric_of_the_alerts_and_the_dashboard_is_in_the_reference():
    described = set(re.findall(r"^\| `(\w+)` \|", metrics_reference(), re.MULTILINE))
    used = {
        re.sub("_(bucket|sum|count)$", "", name)
        for file in ("alerts.yaml", "dashboard.json")
        for name in re.findall(
            r"\bautoplay_rag_\w+", (ROOT / "docs" / "grafana" / file).read_text()
        )
    }
    assert used
    assert used <= described


def test_every_command_is_in_its_reference():
    text = command_reference()
    for command in ("serve", "ingest", "dead-letters", "token"):
        assert f"\n## {command}\n" in text
    assert "\n### dead-letters retry\n" in text
    serve = text.partition("\n## serve\n")[2].partition("\n## ")[0]
    assert "| `--port VALUE` |" in serve
    assert "| `SOURCE` |" in serve
    assert "`--help`" not in text


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    target = tmp_path_factory.mktemp("staged")
    stage(ROOT, target)
    return target


def test_the_staged_pages_have_what_is_generated(staged):
    assert "### POST /v1/search" in (staged / "reference" / "http.md").read_text()
    assert "## serve" in (staged / "reference" / "command.md").read_text()
    for page in staged.rglob("*.md"):
        assert not re.search("^<!-- generated", page.read_text(), re.MULTILINE)


def test_the_staged_pages_link_to_each_other(staged):
    guide = (staged / "guides" / "langchain.md").read_text()
    assert "](../integrations/langchain-autoplay.md)" in guide
    assert "](../notebooks/02-langchain.md)" in guide
    contributing = (staged / "project" / "contributing.md").read_text()
    assert "](../recipes/own-store.md)" in contributing
    assert (staged / "notebooks" / "01-quickstart.ipynb").is_file()


def test_a_fence_has_one_word_after_it(staged):
    assert "```json\n" in (staged / "recipes" / "mcp.md").read_text()
    assert "```json http" not in (staged / "recipes" / "mcp.md").read_text()


def test_broken_links_and_foreign_scripts_of_the_site_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<a href="b.html#there"></a><a href="b.html#no"></a><a href="c.html"></a>'
        '<a href="https://elsewhere.test/"></a><script src="https://cdn.test/x.js"></script>'
        '<link rel="stylesheet" href="none.css"><link rel="next" href="b.html">'
    )
    (tmp_path / "b.html").write_text('<h2 id="there"></h2>')
    assert problems_of(tmp_path) == [
        "a.html: loads https://cdn.test/x.js",
        "a.html: loads none.css, which does not exist",
        "a.html: links to b.html#no, which has no such anchor",
        "a.html: links to c.html, which does not exist",
    ]
