"""Opens the store of a pipeline: checks that it has what is needed, and that the journal is its own."""

from __future__ import annotations

import logging
from typing import Final

from autoplay_rag.errors import ConfigurationError, StoreMismatchError
from autoplay_rag.ingest.pairing import Pairing
from autoplay_rag.ingest.reembedding import can_exchange, settle_exchange
from autoplay_rag.ingest.settings import Settings
from autoplay_rag.journal.on_tables import TableJournal
from autoplay_rag.journal.ownership import Membership
from autoplay_rag.stores.base import Capability, Store, TextStore, VectorStore

__all__ = ["check_is_alone", "open_store"]

_log = logging.getLogger(__name__)

_CONSEQUENCES: Final[dict[Capability, str]] = {
    "delete": "chunks of dead payloads, and actions that a summary replaces, stay in the store",
    "identity": "only a sample of ids shows if it was emptied or exchanged, and only with 'get'",
    "scan": "its content cannot be added to a journal, and `verify` finds no extra chunks",
    "update_metadata": "chunks stored before their user is known are not found by that user",
    "drop": "a rebuild cannot replace vectors of another model",
    "exchange": "`reembed` cannot change the model while the pipeline runs",
}
"""The consequences of each capability that a store lacks."""


async def open_store(
    settings: Settings,
    journal: TableJournal,
    store: VectorStore | TextStore,
    pairing: Pairing,
    model: str,
) -> None:
    """Open the store beside a journal that is open.

    Args:
        settings: The options of the pipeline.
        journal: The journal.
        store: The store.
        pairing: Compares the two.
        model: The name of the embedder; "" without one.

    Raises:
        ConfigurationError: If the store, or other processes of the journal, do not allow an option.
        StoreMismatchError: If journal and store do not belong together.
        StoreError: Or another subclass, if the store cannot be used.
    """
    if settings.rebuild or settings.adopt:
        what = "rebuild=True" if settings.rebuild else "adopt=True"
        await check_is_alone(journal.membership, what)
    await _start(journal, store, pairing, model)
    _log_missing_capabilities(store)
    if settings.retention_days is not None and "delete" not in store.capabilities:
        raise ConfigurationError(
            "retention_days needs a store that can delete chunks, and "
            f"{type(store).__name__} cannot"
        )
    # What an earlier run did not delete must not be stored by this one.
    await journal.erasures.delete_all()
    if settings.journal:
        await pairing.check()


async def check_is_alone(membership: Membership | None, what: str) -> None:
    """Refuse what other processes, which go on with the old model or store, would spoil.

    Args:
        membership: This process among those of the journal; None if it is the only one.
        what: The option or the method, for the message.

    Raises:
        ConfigurationError: If there are other processes.
    """
    if membership is not None and (count := await membership.others()):
        raise ConfigurationError(
            f"{what} needs that no other process uses this journal, but {count} of them do: stop "
            "them first (one that was killed counts until its lease ends)"
        )


async def _start(
    journal: TableJournal, store: VectorStore | TextStore, pairing: Pairing, model: str
) -> None:
    copy = None
    if isinstance(store, VectorStore) and can_exchange(store):
        copy = await settle_exchange(journal.copies, store)
    try:
        await pairing.open_store()
    except StoreMismatchError as error:
        if copy is None or not model or copy.model != model:
            raise
        raise StoreMismatchError(
            f"only {copy.done:,} of {copy.total:,} chunks are embedded with {copy.model!r} so "
            "far. What to do: start with the old embedder, and call reembed() again (command: "
            f"reembed), which goes on where it stopped ({error})"
        ) from error


def _log_missing_capabilities(store: Store) -> None:
    for capability, consequence in _CONSEQUENCES.items():
        if capability not in store.capabilities:
            _log.info("%s has no %r: %s", type(store).__name__, capability, consequence)
