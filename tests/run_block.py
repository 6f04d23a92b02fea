"""Run one block of Python from a page as a reader would: in a script, a notebook or a server.

Usage: run_block.py FILE. The exit code is that of the block. If the block defines a web application,
it is started, gets one request for `/search` from the first of its `LOGINS`, and is shut down. A
chat model answers from a script.
"""

import ast
import asyncio
import inspect
import sys
import types
from pathlib import Path


async def serve(app, login) -> None:
    """Start and stop an application as a server does, with one request in between."""
    import httpx

    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://app.test") as client:
            answer = await client.get(
                "/search", params={"q": "export a report"}, headers={"Authorization": login}
            )
            assert answer.status_code == 200, answer.text
            assert isinstance(answer.json(), list)


def script_models() -> None:
    """Let `init_chat_model` return a model that needs no service."""
    import langchain.chat_models
    from langchain_core.language_models import GenericFakeChatModel

    class Scripted(GenericFakeChatModel):
        def bind_tools(self, tools, **_):
            return self

    langchain.chat_models.init_chat_model = lambda name: Scripted(
        messages=iter(["It had expired."])
    )


def main(path: Path) -> None:
    module = types.ModuleType("__main__")
    text = path.read_text()
    if "init_chat_model" in text:
        script_models()
    code = compile(text, path, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    found = eval(code, module.__dict__)
    if inspect.iscoroutine(found):

        async def cell() -> None:
            await found
            for name in ("client", "pipeline", "connector"):
                if closing := getattr(module.__dict__.get(name), "aclose", None):
                    await closing()

        asyncio.run(cell())
    if app := module.__dict__.get("app"):
        asyncio.run(serve(app, next(iter(module.__dict__["LOGINS"]))))


main(Path(sys.argv[1]))
