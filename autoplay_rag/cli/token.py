"""`autoplay-rag token`: signs a token that is bound to one person or one session."""

from __future__ import annotations

from typing import Annotated

import typer

from autoplay_rag.cli.console import say
from autoplay_rag.serve.tokens import mint_token

__all__ = ["token"]


def token(
    *,
    product: Annotated[str, typer.Option(help="The product.")],
    user: Annotated[str | None, typer.Option(help="The person whose data it shows.")] = None,
    session: Annotated[str | None, typer.Option(help="The session that it shows.")] = None,
    ttl: Annotated[
        str, typer.Option(metavar="15m", help="How long it is valid: 90s, 15m, 8h; at most 24h.")
    ] = "15m",
) -> None:
    """Print a token for the server, which shows the data of one person or one session.

    It is signed with the key in AUTOPLAY_RAG_SIGNING_KEY, or in the file that
    AUTOPLAY_RAG_SIGNING_KEY_FILE names. Nothing else is printed.
    """
    say(mint_token(product, user_id=user, session_id=session, ttl=ttl))
