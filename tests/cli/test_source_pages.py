"""The commands on the pages about analytics tools do what the pages say."""

import re
import shlex
from pathlib import Path

import pytest

from autoplay_rag.sources.specs import ANALYTICS_TOOLS

PAGES = Path(__file__).parents[2] / "docs" / "sources"
CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def commands(tool):
    """The commands of each block, without the prompt."""
    text = (PAGES / f"{tool}.md").read_text()
    return [
        [shlex.split(line.removeprefix("$ ")) for line in block.splitlines()]
        for block in CONSOLE.findall(text)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("tool", ANALYTICS_TOOLS)
async def test_it_can_be_tried_without_an_account(tool, started, ended):
    (_, setting), (_, *serve), (_, *connector), (_, *search) = commands(tool)[-1]
    name, _, value = setting.partition("=")
    environment = {name: value}
    async with started(*serve, "--port", "0", **environment) as server:
        url = (await server.line("serving")).removeprefix("serving ")
        given = [arg.replace("http://127.0.0.1:8760", url) for arg in connector]
        assert given != connector
        async with started(*given, "--port", "0", **environment) as running:
            assert await running.line("posted") == "posted 680 events"
            running.interrupt()
            assert (await running.end())[0] == 0
        code, out, err = await ended(*search)
        server.interrupt()
        await server.end()
    assert code == 0, err
    assert "Your card was declined" in out


@pytest.mark.slow
@pytest.mark.parametrize("tool", ANALYTICS_TOOLS)
def test_the_options_on_the_page_exist(tool, cli):
    for block in commands(tool)[:-1]:
        for line in block:
            program, *args = line[line.index("autoplay-rag") :] if "autoplay-rag" in line else [""]
            options = [arg for arg in args if arg.startswith("--")]
            if program and options:
                shown = cli(args[0], "--help").stdout
                assert all(option in shown for option in options), line
