"""The arguments of the tools, with descriptions for the model.

Each tool has two forms. Under a token that is bound to a person or a session, no argument says whose
data is read. Under a key, `user_id` and `product_id` do.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from autoplay_rag.serve.access import Ids
from autoplay_rag.serve.models import Id

__all__ = [
    "Activity",
    "Arguments",
    "History",
    "Read",
    "Search",
    "UsersActivity",
    "UsersHistory",
    "UsersRead",
    "UsersSearch",
]

_Since: TypeAlias = Annotated[
    Annotated[str, Field(max_length=64)] | None,
    Field(
        description="Only what ended then or later: an ISO date or time with a zone, or how long "
        "ago, such as '7d', '12h' or '30m'."
    ),
]
_Until: TypeAlias = Annotated[
    Annotated[str, Field(max_length=64)] | None,
    Field(description="Only what started then or earlier; written like `since`."),
]


class Arguments(BaseModel):
    """What a model writes. Other arguments are refused: ignoring one would mislead the model."""

    model_config = ConfigDict(extra="forbid")

    @property
    def ids(self) -> Ids:
        """The ids that select the data."""
        names = ("user_id", "session_id", "product_id")
        return Ids(*(getattr(self, name, None) for name in names))


class _OfUser(Arguments):
    user_id: Annotated[Id | None, Field(description="Only this user. Without it: every user.")] = (
        None
    )
    product_id: Annotated[
        Id | None,
        Field(description="Only this product. Needed if an id occurs in several products."),
    ] = None


class Search(Arguments):
    """Arguments of `search_sessions`."""

    query: Annotated[
        str,
        Field(
            min_length=1,
            max_length=2000,
            description="What to look for, in plain words, or exact words such as codes, names and "
            "error messages.",
        ),
    ]
    k: Annotated[int, Field(ge=1, le=20, description="The most sessions.")] = 5
    since: _Since = None
    until: _Until = None
    session_id: Annotated[Id | None, Field(description="Only this session.")] = None


class Read(Arguments):
    """Arguments of `read_session`."""

    session_id: Annotated[
        Id, Field(description="The id of the session, exactly as another tool gave it.")
    ]
    start: Annotated[
        int, Field(ge=1, le=2**31, description="The event to begin with; see `next_start`.")
    ] = 1


class Activity(Arguments):
    """Arguments of `recent_activity`."""

    minutes: Annotated[float, Field(gt=0, le=60, description="How many minutes to look back.")] = (
        10.0
    )
    session_id: Annotated[
        Id | None, Field(description="Only this session. Without it: the latest one.")
    ] = None


class History(Arguments):
    """Arguments of `user_history`."""

    since: _Since = None
    until: _Until = None
    matching: Annotated[
        Annotated[str, Field(min_length=1, max_length=2000)] | None,
        Field(description="Only sessions that contain all of these words."),
    ] = None
    limit: Annotated[int, Field(ge=1, le=50, description="The most sessions.")] = 20
    cursor: Annotated[
        Annotated[str, Field(max_length=200)] | None,
        Field(description="Continues a list: the `next_cursor` of the answer before."),
    ] = None


class UsersSearch(Search, _OfUser):
    """Arguments of `search_sessions` under a key."""


class UsersRead(Read, _OfUser):
    """Arguments of `read_session` under a key."""


class UsersActivity(Activity, _OfUser):
    """Arguments of `recent_activity` under a key."""

    user_id: Annotated[Id | None, Field(description="The user. Give it, or a session_id.")] = None


class UsersHistory(History, _OfUser):
    """Arguments of `user_history` under a key."""
