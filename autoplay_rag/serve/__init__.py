"""One process that ingests and answers over HTTP.

`create_app` makes the ASGI application for a server of your own. `mint_token` signs a token that is
bound to one person or one session. The command `autoplay-rag serve` does the rest. Needs the extra
`serve`.
"""

from typing import TYPE_CHECKING

from autoplay_rag._lazy import lazy_exports

if TYPE_CHECKING:
    from autoplay_rag.serve.app import create_app
    from autoplay_rag.serve.keys import Keys
    from autoplay_rag.serve.running import RunningServer, find_running
    from autoplay_rag.serve.tokens import SigningKeys, mint_token

__all__ = ["Keys", "RunningServer", "SigningKeys", "create_app", "find_running", "mint_token"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Keys": "autoplay_rag.serve.keys",
        "RunningServer": "autoplay_rag.serve.running",
        "SigningKeys": "autoplay_rag.serve.tokens",
        "create_app": "autoplay_rag.serve.app",
        "find_running": "autoplay_rag.serve.running",
        "mint_token": "autoplay_rag.serve.tokens",
    },
)
