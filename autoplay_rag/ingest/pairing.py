"""Checks that a journal and a store belong together, and rebuilds or adopts the store if asked.

The journal and the store each record the id of the other and the number of the last acknowledged
batch. So `start` detects if either was emptied, exchanged or replaced by an older copy. A crash can
leave the store ahead of the journal's note. It cannot leave the store behind a batch that it has
confirmed.

The order of the writes ensures that a kill or a power loss between them causes no mismatch: the
journal forgets its old store, then the store records the journal, then the journal records the
store.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from autoplay_rag._describe import describe
from autoplay_rag.cluster.address import JournalAddress
from autoplay_rag.errors import ConfigurationError, StoreMismatchError
from autoplay_rag.journal.base import Journal, Known, Notes
from autoplay_rag.stores.base import StoreIdentity, TextStore, VectorStore

__all__ = ["Pairing", "Verdict", "check_options", "judge"]

_log = logging.getLogger(__name__)

Verdict: TypeAlias = Literal[
    "match", "new", "emptied", "exchanged", "older store", "older journal", "foreign", "other model"
]
"""The results of comparing a journal's notes with a store's."""

_SAMPLE = 100
_ADOPT_PAGE = 500
_NOTE_SECONDS = 5.0
"""The timeout of saving one note in the store. Only the end of the pipeline waits for it."""
_START_ONCE = "start once with IngestPipeline({0}=True) (command: --{0})"
_REBUILD = (
    f"{_START_ONCE.format('rebuild')}, which embeds everything again from the journal's texts"
)
_DROP_AND_REBUILD = (
    f"{_START_ONCE.format('rebuild')}, which deletes the content of this store and embeds everything "
    "again from the journal's texts"
)
_ADOPT = f"{_START_ONCE.format('adopt')}, which adds the store's content to the journal"
_MISMATCHES: dict[Verdict, tuple[str, str]] = {
    "emptied": (
        (
            "{store} has none of the {chunks:,} chunks that the journal {journal} stored: it was "
            "emptied, or is another store"
        ),
        f"use the store that has them or restore it, or {_REBUILD}",
    ),
    "exchanged": (
        "{store} is not the store that the journal {journal} was last used with",
        f"use that store, or {_DROP_AND_REBUILD}",
    ),
    "older store": (
        (
            "{store} is an older copy: it lacks batches that it had confirmed to the journal "
            "{journal} (the store is at batch {held}, the journal at {noted})"
        ),
        f"use the newer copy, or {_DROP_AND_REBUILD}",
    ),
    "other model": (
        (
            "{store} holds vectors of the model {old!r} for the journal {journal}, but the "
            "embedder is {new!r}"
        ),
        f"use the model {{old!r}}, or {_DROP_AND_REBUILD}",
    ),
    "older journal": (
        (
            "the journal {journal} is an older copy: {store} holds batches that the journal lacks "
            "(the store is at batch {held}, the journal at {acknowledged})"
        ),
        f"use the newer copy, or {_ADOPT}",
    ),
    "foreign": (
        "{store} belongs to another journal, not to {journal}",
        f"check the path of the journal and of the store, or {_ADOPT}",
    ),
}
_NEED_REBUILD: frozenset[Verdict] = frozenset(
    ("emptied", "exchanged", "older store", "other model")
)
_NEED_ADOPT: frozenset[Verdict] = frozenset(("older journal", "foreign"))
_NEED_DROP: frozenset[Verdict] = frozenset(("exchanged", "older store", "other model"))
"""Verdicts for which a rebuild first drops the store's content: vectors of another model, and chunks
that were deleted since, must not stay."""


def judge(notes: Notes, known: Known, identity: StoreIdentity | None) -> Verdict:
    """Compare a journal's notes with a store's. Pure.

    Args:
        notes: The journal's notes about its store.
        known: The journal's progress; `chunks` excludes those that are queued to be stored again.
        identity: The store's notes about its journal; None if it has none.

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
    """A journal and the store it is used with.

    Attributes:
        journal: The journal, open.
        store: The store.
        model: The embedder's model; "" if the store embeds texts itself.
        rebuild: Whether to embed everything again.
        adopt: Whether to adopt the store's content.
        path: The journal's file or address, for messages; None if it is in memory.
    """

    journal: Journal
    store: VectorStore | TextStore
    model: str
    rebuild: bool = False
    adopt: bool = False
    path: Path | JournalAddress | None = None
    _identity: StoreIdentity | None = None
    _rebuilding: bool = False
    _noting_fails: bool = False
    _unrecorded: bool = False
    """Whether the store has chunks of this journal and neither has recorded the other yet. An older
    version did not record all chunks of a payload, so the missing ones are read from the store."""

    async def open_store(self) -> None:
        """Start the store. With `rebuild`, drop one with another model's vectors first.

        Raises:
            StoreMismatchError: If it holds another model's vectors and may not be dropped.
        """
        try:
            await self.store.start(self.model)
        except StoreMismatchError as error:
            if self.path is None:
                raise
            await self._drop_mismatched(error)

    async def check(self) -> None:
        """Compare journal and store, and rebuild or adopt the store if asked.

        Raises:
            StoreMismatchError: If they do not belong together. The message says what to do.
        """
        notes, known = await self._state()
        self._identity = await self._stored_identity()
        verdict = await self._verdict(notes, known)
        _log.debug("journal and store: %s", verdict)
        if verdict in _NEED_ADOPT and not self.adopt:
            raise self._mismatch(verdict, notes, known)
        refilling = verdict in _NEED_REBUILD and not self.store.persistent
        if verdict in _NEED_REBUILD and not (self.rebuild or refilling):
            raise self._mismatch(verdict, notes, known)
        if self.adopt and verdict not in _NEED_REBUILD:
            await self._adopt_content(verdict)
        if (self.rebuild or refilling) and not self._rebuilding:
            await self._queue_all(refilling=refilling)
            if verdict in _NEED_DROP and await self._may_drop():
                await self._drop()
        elif not notes.store_id or self.journal.upgraded_from is not None:
            await self._read_missing_texts()
        await self._record_each_other(new_id=verdict == "older journal")

    def exchanged(self, identity: StoreIdentity, model: str) -> None:
        """Use another store's identity and model from now on. Journal and store have it already."""
        self._identity = identity
        self.model = model

    async def note(self) -> None:
        """Save the last acknowledged batch in the store, then in the journal's notes.

        If the store fails to save it, the comparison at the next start is only less exact.

        Raises:
            JournalError: If the journal cannot be written.
        """
        if self._identity is None:
            return
        batch = await self.journal.acknowledged_for_good()
        if batch == self._identity.batch:
            return
        identity = replace(self._identity, batch=batch)
        try:
            async with asyncio.timeout(_NOTE_SECONDS):
                await self.store.save_identity(identity)
        except Exception as error:  # noqa: BLE001 - a store may raise anything
            level = logging.DEBUG if self._noting_fails else logging.WARNING
            self._noting_fails = True
            _log.log(level, "the store could not save the journal's progress: %s", describe(error))
            return
        self._noting_fails = False
        self._identity = identity
        await self.journal.note_store(identity.store_id, batch, self.model)

    # -- compare ------------------------------------------------------------------------------

    async def _state(self) -> tuple[Notes, Known]:
        """Return the journal's notes and progress; `chunks` counts those the store must have."""
        notes, known = await self.journal.notes(), await self.journal.known()
        queued = await self.journal.count_queued()
        return notes, replace(known, chunks=known.chunks - queued)

    async def _stored_identity(self) -> StoreIdentity | None:
        if "identity" not in self.store.capabilities:
            return None
        return await self.store.identity()

    async def _verdict(self, notes: Notes, known: Known) -> Verdict:
        verdict: Verdict = "new"
        if "identity" in self.store.capabilities:
            verdict = judge(notes, known, self._identity)
        if verdict not in ("new", "match") or not known.chunks:
            return verdict
        # Neither has recorded the other (the first start after an upgrade, or a store without
        # 'identity'), or the store kept its identity but may have been emptied.
        if await self._has_ours() is False:
            return "emptied"
        if notes.model and notes.model != self.model:
            return "other model"
        return "match"

    async def _has_ours(self) -> bool | None:
        """Whether the store has any of a sample of the journal's chunks; None if unknown."""
        ids = await self.journal.sample(_SAMPLE)
        if not ids or "get" not in self.store.capabilities:
            return None
        can_name = "identity" in self.store.capabilities
        try:
            found = bool(await self.store.get(ids))
        except Exception as error:
            if can_name:
                raise
            # The store may be in an outage. The journal must accept payloads all the same.
            _log.warning(
                "%s could not be compared with the journal %s: %s",
                _name_of(self.store),
                self.path,
                describe(error),
            )
            return None
        upgraded = self.journal.upgraded_from is not None
        self._unrecorded = found and self._identity is None and (can_name or upgraded)
        return found

    def _mismatch(self, verdict: Verdict, notes: Notes, known: Known) -> StoreMismatchError:
        what, remedy = (
            text.format(
                store=_name_of(self.store),
                journal=self.path,
                chunks=known.chunks,
                held=self._identity.batch if self._identity else 0,
                noted=notes.store_batch,
                acknowledged=known.acknowledged,
                old=notes.model or "the store's own",
                new=self.model or "the store's own",
            )
            for text in _MISMATCHES[verdict]
        )
        return StoreMismatchError(f"{what}. What to do: {remedy}")

    # -- carry out ----------------------------------------------------------------------------

    async def _drop_mismatched(self, error: StoreMismatchError) -> None:
        """Drop and restart a store that refused to start with this model, if allowed.

        Raises:
            StoreMismatchError: If it is not allowed.
        """
        notes, known = await self._state()
        # An earlier rebuild was killed after it queued all chunks and before it dropped the store:
        # the queue stores everything again that the store holds.
        interrupted = notes.model == self.model and not known.chunks
        interrupted = interrupted and await self.journal.count_queued() > 0
        self._identity = identity = await self._stored_identity()
        verdict = judge(notes, known, identity)
        if verdict in _NEED_ADOPT and not self.adopt:
            raise self._mismatch(verdict, notes, known) from error
        if verdict in _NEED_ADOPT and not self.rebuild:
            raise StoreMismatchError(
                f"{_name_of(self.store)} holds vectors of another model than {self.model!r}, and "
                f"chunks that the journal {self.path} lacks. What to do: use their model, or start "
                "once with IngestPipeline(adopt=True, rebuild=True) (command: --adopt --rebuild), "
                "which adds the store's content to the journal and embeds everything again"
            ) from error
        if not (self.rebuild or interrupted):
            if identity is None or notes.model in ("", self.model):
                raise error
            raise self._mismatch("other model", notes, known) from error
        if identity is None and not await self._has_ours():
            raise self._not_droppable("the journal {journal} has no record of them") from error
        if "drop" not in self.store.capabilities:
            raise self._not_droppable("the store does not support it (it has no 'drop')") from error
        if not await self._may_drop():
            raise self._not_droppable("the journal {journal} lacks some of their texts") from error
        if verdict in _NEED_ADOPT:
            await self._adopt_content(verdict)
        await self._queue_all(refilling=False)
        await self._drop()

    def _not_droppable(self, why: str) -> StoreMismatchError:
        return StoreMismatchError(
            f"{_name_of(self.store)} holds vectors of another model than {self.model!r}, and they "
            f"are not deleted: {why.format(journal=self.path)}. What to do: use their model or "
            "another collection or folder, or check the path of the journal"
        )

    async def _may_drop(self) -> bool:
        """Whether the store can be dropped without losing texts that a rebuild needs."""
        can = self.store.capabilities
        return "drop" in can and ("scan" in can or not await self.journal.missing_texts())

    async def _queue_all(self, *, refilling: bool) -> None:
        missing = await self._read_missing_texts()
        count = await self.journal.queue_all()
        # After this note, each start with this model continues the rebuild, even without `rebuild`.
        await self.journal.note_store("", 0, self.model)
        await self.journal.acknowledged_for_good()
        self._rebuilding = True
        _log.info("%d chunks are embedded and stored again from the journal's texts", count)
        if missing and not refilling:
            _log.warning("%d chunks are not stored again: only the store had their texts", missing)

    async def _drop(self) -> None:
        _log.info("%s: deleting its content before the rebuild", _name_of(self.store))
        await self.store.drop()
        await self.store.start(self.model)
        self._identity = None

    async def _adopt_content(self, verdict: Verdict) -> None:
        if verdict == "foreign":
            # The chunks that this journal has stored are in another store.
            await self.journal.queue_all()
        if "scan" not in self.store.capabilities:
            _log.warning(
                "%s cannot be scanned, so the journal does not learn its content: a payload that "
                "the store already holds is stored again if it is delivered again",
                _name_of(self.store),
            )
            return
        count = 0
        async for page in self.store.scan(_ADOPT_PAGE):
            count += await self.journal.adopt(page)
        if count:
            _log.warning(
                "adopted %d chunks of the store. The store does not record their payloads. The "
                "journal recognises only the first payload of each chunk; others are stored again "
                "if they are delivered again",
                count,
            )

    async def _read_missing_texts(self) -> int:
        """Read texts from the store that an older journal format did not keep.

        Returns:
            The number of chunks that still have no text.
        """
        missing = await self.journal.missing_texts()
        if not missing and not self._unrecorded:
            return 0
        if "scan" not in self.store.capabilities:
            if missing:
                _log.warning(
                    "only the store has the texts of %d chunks, and %s cannot be scanned: a "
                    "rebuild does not embed them again",
                    missing,
                    _name_of(self.store),
                )
            return missing
        unknown = 0
        for again in (False, True):  # `adopt` finds later parts of a payload by the first part
            async for page in self.store.scan(_ADOPT_PAGE):
                missing -= await self.journal.fill(page)
                if again and self._unrecorded:
                    unknown += await self.journal.adopt(page)
        self._unrecorded = False
        if unknown:
            _log.info("added %d chunks of the store that the journal lacked", unknown)
        if missing:
            _log.warning("the store does not have %d chunks that the journal stored", missing)
        return missing

    async def _record_each_other(self, *, new_id: bool) -> None:
        """Record the journal in the store and the store in the journal.

        Args:
            new_id: Whether to give the store a new id. It then no longer matches a newer copy of
                the journal.
        """
        notes = await self.journal.notes()
        if "identity" not in self.store.capabilities:
            known = await self.journal.known()
            await self.journal.note_store(notes.store_id, known.acknowledged, self.model)
            return
        held = self._identity
        store_id = os.urandom(16).hex() if held is None or new_id else held.store_id
        if notes.store_id not in ("", store_id):
            await self.journal.note_store("", 0, self.model)
        # The store must never confirm a batch that the journal could lose in a power loss.
        batch = await self.journal.acknowledged_for_good()
        claimed = StoreIdentity(store_id, notes.journal_id, batch)
        if claimed != held:
            await self.store.save_identity(claimed)
        self._identity = claimed
        await self.journal.note_store(store_id, batch, self.model)


def check_options(*, has_file: bool, rebuild: bool, adopt: bool) -> None:
    """Check that `rebuild` and `adopt` are only used with a journal file.

    Raises:
        ConfigurationError: If one is set without a journal file.
    """
    for name, given in (("rebuild", rebuild), ("adopt", adopt)):
        if given and not has_file:
            raise ConfigurationError(f"{name}=True needs a journal file: give journal=...")


def _name_of(store: VectorStore | TextStore) -> str:
    """Return a store's name for messages, without secrets that its repr may contain."""
    cls = type(store)
    if cls.__repr__ is object.__repr__ or dataclasses.is_dataclass(cls):
        return cls.__name__
    return re.sub(r"//[^/@\s]+@", "//...@", repr(store))
