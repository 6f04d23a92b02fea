"""Whom a run is about: the one place where user, session, conversation and product are read."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from autoplay_rag.errors import ConfigurationError
from langchain_core.runnables import RunnableConfig, ensure_config

__all__ = ["ID_NAMES", "Ids", "ids_in", "resolve_ids", "run_context"]

ID_NAMES = ("session_id", "user_id", "conversation_id", "product_id")
"""The names of the ids."""

Ids: TypeAlias = Mapping[str, str | None]
"""The known ones of `session_id`, `user_id`, `conversation_id` and `product_id`."""


def resolve_ids(
    config: RunnableConfig | None = None,
    *,
    context: Any = None,
    metadata: Any = None,
    given: tuple[str, Any] | None = None,
    names: Iterable[str] = ID_NAMES,
) -> dict[str, str]:
    """Return the ids of a run.

    Three places are read: the run's context (`agent.invoke(..., context={"user_id": "u1"})`, a dict
    or an object with these attributes), `config["configurable"]`, and `config["metadata"]`. One place
    is enough. No argument of a tool and no other text from a model is read.

    Args:
        config: The config of the call; by default that of the run in which this is called.
        context: The run's context; by default that of the LangGraph run in which this is called.
        metadata: More metadata that belongs to the run.
        given: An argument that names ids too: its name for messages, and the ids.
        names: The ids to read.

    Returns:
        The known ids, as text.

    Raises:
        ConfigurationError: If two places name different ids. The message names the places, not the
            ids.

    Example:
        >>> resolve_ids({"configurable": {"user_id": 7}, "metadata": {"user_id": "7"}})
        {'user_id': '7'}
    """
    config = ensure_config(config)
    # A retriever that wraps another one passes on only its callbacks; they contain the metadata.
    around = getattr(config.get("callbacks"), "metadata", None)
    places = [
        *([given] if given else []),
        ("the run's context", run_context() if context is None else context),
        ('config["configurable"]', config.get("configurable")),
        ('config["metadata"]', config.get("metadata")),
        ("the metadata of the calling run", around),
        ("the run's metadata", metadata),
    ]
    names = tuple(names)
    found: dict[str, str] = {}
    source: dict[str, str] = {}
    for place, values in places:
        for name, value in ids_in(values, names).items():
            if found.setdefault(name, value) != value:
                raise ConfigurationError(
                    f"{source[name]} and {place} name a different {name}: give each id in one of them"
                )
            source.setdefault(name, place)
    return found


def ids_in(values: Any, names: Iterable[str] = ID_NAMES) -> dict[str, str]:
    """Return the ids that a mapping or an object has; None and "" count as missing.

    Example:
        >>> ids_in({"user_id": 7, "session_id": "", "thread_id": "t1"})
        {'user_id': '7'}
    """
    named = isinstance(values, Mapping)
    found = {name: values.get(name) if named else getattr(values, name, None) for name in names}
    return {name: str(value) for name, value in found.items() if value not in (None, "")}


def run_context() -> Any:
    """Return the context of the LangGraph run in which this is called; None if there is none."""
    if "langgraph.runtime" not in sys.modules:  # without it no graph can run
        return None
    from langgraph.runtime import get_runtime

    try:
        return getattr(get_runtime(), "context", None)
    except (KeyError, RuntimeError):  # not in a run
        return None
