"""Finding, rewriting and checking links."""

import string

from hypothesis import given
from hypothesis import strategies as st

from tools.docs_site.links import anchors, broken_links, links, relink

PAGE = """# One

[a](a.md) and ![b](b.svg) and [c
d](https://d.test/x#y), but not `[e](e.md)`.

```python
f = [g](h.md)
```

[![badge](badge.svg)](i.md#j)
"""


def test_links_are_found_outside_of_code():
    assert list(links(PAGE)) == ["a.md", "b.svg", "https://d.test/x#y", "i.md#j"]


def test_anchors_are_as_on_github():
    text = "# A, `b` & c\n\n## What is, and is not\n\n```text\n# no heading\n```\n\n## What is, and is not\n\n::: pkg.Name\n"
    assert anchors(text) == {"a-b--c", "what-is-and-is-not", "what-is-and-is-not-1", "pkg.Name"}


def test_a_link_goes_to_the_place_on_the_site():
    places = {"docs/a/b.md": "a/b.md", "docs/c.md": "c.md", "CHANGELOG.md": "project/changes.md"}
    text = (
        "[c](../c.md#x) [log](../../CHANGELOG.md) [here](#y) [web](https://w.test) `[c](../c.md)`"
    )
    assert relink(text, "docs/a/b.md", "a/b.md", places) == (
        "[c](../c.md#x) [log](../project/changes.md) [here](#y) [web](https://w.test) `[c](../c.md)`"
    )


def test_a_link_to_what_is_not_on_the_site_becomes_its_text():
    assert relink("see [the licence](LICENSE).", "README.md", "x.md", {}) == "see the licence."


@given(st.text(string.ascii_letters + "[]()#`!. \n", max_size=80))
def test_any_text_can_be_rewritten_and_keeps_its_code(text):
    code = "```text\n[a](b.md)\n```"
    assert code in relink(f"{text.replace('`', '')}\n\n{code}\n", "a.md", "a.md", {})


def test_broken_links_are_named(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "there.md").write_text("# Title\n")
    text = "# Own\n\n[a](there.md) [b](there.md#title) [c](there.md#no) [d](no.md) [e](#own) [f](../../x)"
    (tmp_path / "docs" / "page.md").write_text(text)
    assert list(broken_links(text, "docs/page.md", tmp_path)) == [
        "docs/page.md: there.md#no: no such heading",
        "docs/page.md: no.md: no such file",
        "docs/page.md: ../../x: no such file",
    ]


def test_the_sources_of_a_picture_are_rewritten_and_checked(tmp_path):
    text = (
        '<picture>\n<source srcset="docs/i/dark.png">\n<img src="docs/i/light.png">\n</picture>\n'
    )
    assert list(links(text)) == ["docs/i/dark.png", "docs/i/light.png"]
    assert len(list(broken_links(text, "README.md", tmp_path))) == 2
    places = {"docs/i/dark.png": "i/dark.png", "docs/i/light.png": "i/light.png"}
    assert relink(text, "README.md", "project/readme.md", places) == text.replace("docs/", "../")
