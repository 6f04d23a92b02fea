"""Whether a journal and a store belong together, and what to do where they do not.

Each keeps the other's id and the number of the last acknowledged batch. So an emptied, exchanged or
older copy of either is noticed at start. A crash explains a store that is ahead of its own note;
nothing explains one that is behind what it confirmed.
"""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from autoplay_rag._describe import describe
from autoplay_rag.errors import ConfigurationError, StoreMismatchError
from autoplay_rag.journal.base import Journal, Known, Notes
from autoplay_rag.stores.base import StoreIdentity, TextStore, VectorStore

__all__ = ["Pairing", "Verdict", "check_options", "judge"]

_log = logging.getLogger(__name__)

Verdict: TypeAlias = Literal[
    "match", "new", "emptied", "exchanged", "older store", "older journal", "foreign", "other model"
]
"""What two notes say of each other."""

_SAMPLE = 100
_ADOPT_PAGE = 500
_NOTE_SECONDS = 5.0
"""How long the last note may take while the store is closed."""
_REBUILD = (
    "to embed everything again from the journal's texts, start once with "
    "IngestPipeline(rebuild=True) (`--rebuild`)"
)
_ADOPT = "to take over what the store holds, start once with IngestPipeline(adopt=True) (`--adopt`)"
_SAID: dict[Verdict, tuple[str, str]] = {
    "emptied": (("the store is empty or another one: it has none of the {chunks:,} chunks that the "
                "journal stored"), _REBUILD),
    "exchanged": ("the journal belongs to another store", _REBUILD),
    "older store": ("the store is an older copy: it lacks batches that it had confirmed", _REBUILD),
    "other model": ("the store holds vectors of the model {held!r}, and the embedder is {model!r}",
                    f"use that model, or {_REBUILD}"),
    "older journal": ("the journal is an older copy: the store holds batches that it does not know",
                      _ADOPT),
    "foreign": (("the store belongs to another journal: check the path of the journal and of the "
                "store"), _ADOPT),
}  # fmt: skip
_REBUILT: frozenset[Verdict] = frozenset(("emptied", "exchanged", "older store", "other model"))
_ADOPTED: frozenset[Verdict] = frozenset(("older journal", "foreign"))


def judge(notes: Notes, known: Known, identity: StoreIdentity | None) -> Verdict:
    """Compare a journal's notes with a store's. Pure.

    Args:
        notes: What the journal notes.
        known: How far the journal has come.
        identity: What the store notes; None if nothing.

    Example:
        >>> notes, known = Notes("j1", "s1", 4), Known(seq=9, batch=6, acknowledged=5, chunks=7)
        >>> judge(notes, known, StoreIdentity("s1", "j1", 5))
        'match'
        >>> judge(notes, known, StoreIdentity("s1", "j1", 3))
        'older store'
    """
    if identity is None:
        return "emptied" if known.chunks and notes.store_id else "new"
    if identity.journal_id != notes.journal_id:
        return "foreign"
    if notes.store_id not in ("", identity.store_id):
        return "exchanged"
    if identity.batch < notes.store_batch:
        return "older store"
    if identity.batch > known.acknowledged:
        return "older journal"
    return "match"


@dataclass(slots=True)
class Pairing:
    """A journal file and the store it is used with.

    Attributes:
        journal: The journal, open.
        store: The store.
        model: Names the embedder; "" where the store embeds for itself.
        rebuild: Whether to embed everything again.
        adopt: Whether to take over what the store holds.
    """

    journal: Journal
    store: VectorStore | TextStore
    model: str
    rebuild: bool = False
    adopt: bool = False
    _identity: StoreIdentity | None = None

    async def open_store(self) -> None:
        """Start the store; with `rebuild`, one that holds another model's vectors is made anew.

        Raises:
            StoreMismatchError: If it holds another model's vectors.
        """
        try:
            await self.store.start(self.model)
        except StoreMismatchError:
            if not self.rebuild or "drop" not in self.store.capabilities:
                raise
            notes = await self.journal.notes()
            identity = await self._stored_identity()
            if identity is not None and identity.journal_id != notes.journal_id:
                raise
            await self.store.drop()
            await self.store.start(self.model)

    async def check(self) -> None:
        """Compare both, and rebuild or adopt where that was asked for.

        Raises:
            StoreMismatchError: If they do not belong together; the message says what to do.
        """
        notes, known = await self.journal.notes(), await self.journal.known()
        self._identity = await self._stored_identity()
        verdict = await self._verdict(notes, known)
        _log.debug("journal and store: %s", verdict)
        if verdict in _ADOPTED:
            if not self.adopt:
                raise self._mismatch(verdict, notes, known)
            await self._take_over()
        elif self.rebuild or (verdict == "emptied" and not self.store.persistent):
            await self._queue_all()
        elif verdict in _REBUILT:
            raise self._mismatch(verdict, notes, known)
        await self._fill()
        await self._claim(notes, known)

    async def note(self) -> None:
        """Have the store note how far the journal has come, and the journal that it has."""
        if self._identity is None:
            return
        batch = await self.journal.acknowledged_for_good()
        if batch != self._identity.batch:
            identity = replace(self._identity, batch=batch)
            await self.store.save_identity(identity)
            self._identity = identity
            await self.journal.note_store(identity.store_id, batch, self.model)

    async def note_last(self) -> None:
        """As `note`, at the end: what fails now is only noticed later."""
        try:
            async with asyncio.timeout(_NOTE_SECONDS):
                await self.note()
        except Exception as error:  # noqa: BLE001 - other people's store
            _log.debug("the store could not note how far the journal is: %s", describe(error))

    # -- what they say ------------------------------------------------------------------------

    async def _stored_identity(self) -> StoreIdentity | None:
        if "identity" not in self.store.capabilities:
            return None
        return await self.store.identity()

    async def _verdict(self, notes: Notes, known: Known) -> Verdict:
        if notes.model and notes.model != self.model and known.chunks:
            return "other model"
        if "identity" in self.store.capabilities:
            verdict = judge(notes, known, self._identity)
            if verdict != "new" or not known.chunks:
                return verdict
            # The first start after an upgrade: neither names the other.
        return "emptied" if await self._has_none_of_ours(known) else "match"

    async def _has_none_of_ours(self, known: Known) -> bool:
        if not known.chunks or "get" not in self.store.capabilities:
            return False
        ids = await self.journal.sample(_SAMPLE)
        return bool(ids) and not await self.store.get(ids)

    def _mismatch(self, verdict: Verdict, notes: Notes, known: Known) -> StoreMismatchError:
        what, remedy = _SAID[verdict]
        what = what.format(chunks=known.chunks, held=notes.model, model=self.model)
        return StoreMismatchError(f"{what}; {remedy}")

    # -- what is done -------------------------------------------------------------------------

    async def _queue_all(self) -> None:
        count = await self.journal.queue_all()
        _log.warning("%d chunks are embedded and stored again from the journal's texts", count)

    async def _take_over(self) -> None:
        if "scan" not in self.store.capabilities:
            _log.warning(
                "%s cannot be scanned: what it holds stays unknown to the journal, and a payload "
                "that it holds already is stored once more when it is delivered again",
                type(self.store).__name__,
            )
            return
        count = 0
        async for page in self.store.scan(_ADOPT_PAGE):
            count += await self.journal.adopt(page)
        _log.warning(
            "adopted %d chunks of the store. It does not say which payloads they hold: each is "
            "known by its first one, the others are stored once more if they are delivered again",
            count,
        )

    async def _fill(self) -> None:
        """Take from the store what an older format of the journal did not keep."""
        missing = await self.journal.missing_texts()
        if not missing:
            return
        if "scan" not in self.store.capabilities:
            _log.warning(
                "the texts of %d chunks are in the store alone, and %s cannot be scanned: they are "
                "not embedded again by a rebuild",
                missing,
                type(self.store).__name__,
            )
            return
        async for page in self.store.scan(_ADOPT_PAGE):
            missing -= await self.journal.fill(page)
        if missing:
            _log.warning("the store does not have %d chunks that the journal stored", missing)

    async def _claim(self, notes: Notes, known: Known) -> None:
        store_id = notes.store_id
        if "identity" in self.store.capabilities:
            held = self._identity
            store_id = held.store_id if held else os.urandom(16).hex()
            claimed = StoreIdentity(store_id, notes.journal_id, known.acknowledged)
            if claimed != held:
                await self.store.save_identity(claimed)
            self._identity = claimed
        await self.journal.note_store(store_id, known.acknowledged, self.model)


def check_options(*, has_file: bool, rebuild: bool, adopt: bool) -> None:
    """Refuse `rebuild` and `adopt` where there is no journal file.

    Raises:
        ConfigurationError: If there is none.
    """
    for name, given in (("rebuild", rebuild), ("adopt", adopt)):
        if given and not has_file:
            raise ConfigurationError(f"{name}=True needs a journal file: give journal=...")
