"""What is checked on every page."""

from pathlib import Path

AXE = (Path(__file__).parent / "axe" / "axe.min.js").read_text()


async def violations(page):
    """What axe-core finds, one line each."""
    await page.evaluate(AXE)
    found = await page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{page.url}: {rule['id']}: {rule['help']}: {node['html'][:200]}"
        for rule in found["violations"]
        for node in rule["nodes"]
    ]


async def scrolls_sideways(page):
    return await page.evaluate(
        "() => document.documentElement.scrollWidth > document.documentElement.clientWidth"
    )
