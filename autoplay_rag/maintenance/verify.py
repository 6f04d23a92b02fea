"""Compares the catalog with the store, beside a live ingest, and repairs what differs.

The store is read in pages, and each page is looked up in the catalog. A difference may come from an
operation that is under way. So each one is checked again: the catalog is read, then the store, then
the catalog. The difference counts only if the catalog says twice the same, and neither a plan nor a
deletion is in progress.

Repairs start right after a read of the catalog that has its place among the journal's transactions.
Operations of a later transaction on the same chunk therefore start after the repair, and win.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Final, NamedTuple, Protocol, TypeVar

from autoplay_rag.content.probe import PROBE_ID
from autoplay_rag.errors import MissingCapabilityError
from autoplay_rag.journal.base import Catalog, Recorded
from autoplay_rag.maintenance.comparing import (
    KINDS,
    Kind,
    NumberSet,
    changes_to,
    is_stale,
)
from autoplay_rag.maintenance.progress import Progress
from autoplay_rag.maintenance.report import VerifyReport
from autoplay_rag.stores.base import Changes, Chunk, Store

__all__ = ["Repairer", "Verifier"]

_log = logging.getLogger(__name__)

_Row = TypeVar("_Row", Recorded, tuple[int, str])

_PAGE: Final = 200
"""Comparing a page takes one to two milliseconds on the event loop."""
_NUMBERS: Final = 5000
"""Numbers and ids of stored chunks in one read."""
_OUTBOX: Final = 10_000
"""The most entries of the deletion outbox that are looked up in a store without 'scan'."""
_EXAMPLES: Final = 5
_FEW_EXTRA: Final = 0.05
"""The share of a collection that may be deleted without being asked for."""


class Repairer(Protocol):
    """Starts operations on the store, in the order of the calls."""

    def is_refused(self, id: str) -> bool:
        """Whether the store has refused to delete this chunk."""

    def store_again(self, count: int) -> None:
        """Start to store chunks that the catalog has just queued."""

    def delete(self, ids: Sequence[str]) -> None:
        """Start to delete chunks that are in the outbox."""

    async def carry_out(self, changes: Mapping[str, Changes], copies: Sequence[str]) -> set[str]:
        """Change metadata of chunks, and delete all copies of others.

        The operations start before the first suspension.

        Returns:
            The ids of the chunks whose operation failed.
        """


class _Difference(NamedTuple):
    kind: Kind
    id: str
    recorded: Recorded | None
    stored: Chunk | None


class Verifier:
    """One comparison of a catalog with its store.

    Args:
        catalog: The journal's catalog.
        store: Its store, started.
        repairer: Repairs the store; None if nothing is to be repaired.
        complete: Whether the catalog lists all chunks that were ever stored. A journal in memory
            begins empty and forgets old chunks, so it cannot show extra ones.

    Raises:
        MissingCapabilityError: If the store can neither be scanned nor return chunks by id.
    """

    def __init__(
        self,
        catalog: Catalog,
        store: Store,
        repairer: Repairer | None = None,
        *,
        complete: bool = True,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._repairer = repairer
        self._can = store.capabilities
        if "scan" not in self._can and "get" not in self._can:
            raise MissingCapabilityError(type(store).__name__, "get")
        self._complete = complete
        self._counts: Counter[Kind] = Counter()
        self._examples: dict[str, list[str]] = {}
        self._checked = self._in_store = 0
        self._queued = self._updated = self._deleted = 0
        self._unrepaired: Counter[str] = Counter()
        self._tell: Callable[[Progress], None] | None = None
        self._total = 0
        self._started = 0.0
        self._seen = NumberSet()
        self._stored_before = NumberSet()

    async def run(
        self,
        *,
        repair: bool = False,
        delete_extra: bool = False,
        total: int = 0,
        tell: Callable[[Progress], None] | None = None,
    ) -> VerifyReport:
        """Compare all chunks, and repair what differs if asked.

        Args:
            repair: Whether to repair. Needs a repairer.
            delete_extra: Whether to delete extra chunks even if they are many.
            total: The chunks in the catalog, for the progress; 0 if unknown.
            tell: Called with the progress after each page.

        Raises:
            StoreError: If the store cannot be read.
            JournalError: If the journal cannot be read.
        """
        self._tell, self._total, self._started = tell, total, time.monotonic()
        repairer = self._repairer if repair else None
        unchecked: list[str] = []
        if "scan" in self._can:
            if "get" not in self._can:
                await self._note_stored()
            await self._compare_store(repairer)
            await self._find_missing(repairer)
        else:
            await self._compare_catalog(repairer)
            await self._find_undeleted(repairer)
            unchecked.append("extra")
        if not self._complete and not unchecked:
            unchecked.append("extra")
        remarks: list[str] = []
        if repairer and self._counts["extra"]:
            reason = await self._why_extra_stays(delete_extra=delete_extra)
            if reason:
                remarks.append(f"{self._counts['extra']:,} extra chunks stay: {reason}")
            else:
                await self._delete_extra(repairer)
        remarks += [
            f"{count:,} chunks are not repaired: {why}" for why, count in self._unrepaired.items()
        ]
        report = VerifyReport(
            clean=not self._counts.total(),
            checked=self._checked,
            examples={kind: tuple(self._examples[kind]) for kind in KINDS if self._counts[kind]},
            queued=self._queued,
            updated=self._updated,
            deleted=self._deleted,
            unchecked=tuple(unchecked),
            remarks=tuple(remarks),
            **{kind: self._counts[kind] for kind in KINDS},
        )
        _log.log(logging.INFO if report.clean else logging.WARNING, "verify: %s", report)
        return report

    # -- reading ------------------------------------------------------------------------------

    async def _note_stored(self) -> None:
        """Note what is stored before the scan: without 'get', nothing else shows what came later."""
        async for rows in self._stored_pages():
            for number, _ in rows:
                self._stored_before.add(number)

    async def _compare_store(self, repairer: Repairer | None) -> None:
        async for page in self._store.scan(_PAGE):
            chunks = [chunk for chunk in page if chunk.id != PROBE_ID]
            self._in_store += len(chunks)
            known = await self._catalog.recorded([chunk.id for chunk in chunks])
            suspects: list[Chunk] = []
            doubles: set[str] = set()
            for chunk in chunks:
                row = known.get(chunk.id)
                if row is None:
                    suspects.append(chunk)
                    continue
                if not self._seen.add(row.number):
                    doubles.add(chunk.id)
                    suspects.append(chunk)
                elif row.stored:
                    self._checked += 1
                    if is_stale(row, chunk):
                        suspects.append(chunk)
            await self._check_again(suspects, known, doubles, repairer)
            self._show()

    async def _find_missing(self, repairer: Repairer | None) -> None:
        async for rows in self._stored_pages():
            missing = [(number, one) for number, one in rows if number not in self._seen]
            if "get" not in self._can:
                missing = [found for found in missing if found[0] in self._stored_before]
            self._checked += len(missing)
            for page in _pages([one for _, one in missing]):
                known = await self._catalog.recorded(page)
                await self._check_again([], known, set(), repairer, ids=page)
                self._show()

    async def _compare_catalog(self, repairer: Repairer | None) -> None:
        async for rows in self._catalog_pages():
            known = {row.chunk.id: row for row in rows if row.stored}
            self._checked += len(known)
            found = _by_id(await self._store.get(list(known)))
            suspects = [
                one
                for one, row in known.items()
                if len(found.get(one, ())) != 1 or is_stale(row, found[one][0])
            ]
            await self._check_again([], known, set(), repairer, ids=suspects)
            self._show()

    async def _find_undeleted(self, repairer: Repairer | None) -> None:
        outbox = await self._catalog.deletions(_OUTBOX, planned=False)
        for ids in _pages(outbox):
            await self._check_again([], {}, set(), repairer, ids=ids)

    def _show(self) -> None:
        if self._tell is not None:
            seconds = time.monotonic() - self._started
            rate = self._checked / seconds if seconds else 0.0
            # More may have been stored since the total was counted.
            self._tell(Progress(self._checked, max(self._total, self._checked), rate))

    def _catalog_pages(self) -> AsyncIterator[list[Recorded]]:
        return _read_pages(self._catalog.recorded_after, _PAGE)

    def _stored_pages(self) -> AsyncIterator[list[tuple[int, str]]]:
        return _read_pages(self._catalog.stored_after, _NUMBERS)

    # -- checking again -----------------------------------------------------------------------

    async def _check_again(
        self,
        suspects: Sequence[Chunk],
        known: Mapping[str, Recorded],
        doubles: set[str],
        repairer: Repairer | None,
        *,
        ids: Sequence[str] = (),
    ) -> None:
        """Check suspects against store and catalog again; count, and repair, those that differ."""
        wanted = list(dict.fromkeys([chunk.id for chunk in suspects] or ids))
        if not wanted:
            return
        can_get = "get" in self._can
        before = await self._catalog.recorded(wanted) if can_get else known
        # Between catalog and store: what left the catalog is in the outbox until the store has
        # deleted it.
        outbox = await self._catalog.in_outbox(wanted)
        found = _by_id(await self._store.get(wanted) if can_get else suspects)
        if can_get:
            doubles = {one for one, copies in found.items() if len(copies) > 1}
        now = await self._catalog.recorded(wanted, in_order=True)
        differences = [
            difference
            for one in wanted
            if before.get(one) == now.get(one)
            and (difference := self._judged(one, now.get(one), found, doubles, outbox))
        ]
        # No suspension between the last read and the start of the repairs: see above.
        for difference in differences:
            self._count(difference)
        if repairer and differences:
            await self._repair(differences, repairer)

    def _judged(
        self,
        id: str,
        row: Recorded | None,
        found: Mapping[str, Sequence[Chunk]],
        doubles: set[str],
        outbox: set[str],
    ) -> _Difference | None:
        copies = found.get(id, ())
        stored = copies[0] if copies else None
        kind: Kind | None = None
        if row is None:
            kind = None if stored is None else self._kind_of_unknown(id, outbox)
        elif row.stored:
            if stored is None:
                kind = "missing"
            elif id in doubles:
                kind = "doubled"
            elif is_stale(row, stored):
                kind = "stale"
        return None if kind is None else _Difference(kind, id, row, stored)

    def _kind_of_unknown(self, id: str, outbox: set[str]) -> Kind | None:
        if id not in outbox:
            return "extra" if self._complete else None
        # Otherwise the deletion is in progress. Without a repairer, nothing is.
        refused = self._repairer is None or self._repairer.is_refused(id)
        return "undeleted" if refused else None

    def _count(self, difference: _Difference) -> None:
        self._counts[difference.kind] += 1
        examples = self._examples.setdefault(difference.kind, [])
        if len(examples) < _EXAMPLES:
            examples.append(difference.id)

    # -- repairing ----------------------------------------------------------------------------

    async def _repair(self, differences: Sequence[_Difference], repairer: Repairer) -> None:
        undeleted = [one.id for one in differences if one.kind == "undeleted"]
        if undeleted:
            repairer.delete(undeleted)
            self._deleted += len(undeleted)
        changes: dict[str, Changes] = {}
        again: list[Recorded] = []
        doubled: list[str] = []
        for kind, one, row, stored in differences:
            if row is None or not self._can_repair(kind, row):
                continue
            if kind == "stale" and (changed := self._only_metadata(row, stored)):
                changes[one] = changed
            else:
                again.append(row)
                if kind == "doubled":
                    doubled.append(one)
        if changes or doubled:
            failed = await repairer.carry_out(changes, doubled)
            refused = failed & changes.keys()
            self._updated += len(changes) - len(refused)
            if refused:
                rows = await self._catalog.recorded(sorted(refused), in_order=True)
                again += rows.values()
            if left := len(failed - changes.keys()):
                self._unrepaired["the store did not delete the second copy"] += left
        if again:
            count = await self._catalog.queue_again([row.number for row in again])
            repairer.store_again(count)
            self._queued += count

    def _can_repair(self, kind: Kind, row: Recorded) -> bool:
        reason = ""
        if not row.has_text:
            reason = "the journal does not have their text"
        elif kind == "doubled" and "delete" not in self._can:
            reason = "the store cannot delete the second copy"
        if reason:
            self._unrepaired[reason] += 1
        return not reason

    def _only_metadata(self, row: Recorded, stored: Chunk | None) -> Changes:
        """Return the changes of metadata that repair a chunk; none if it must be stored again."""
        if stored is None or stored.text != row.chunk.text or "update_metadata" not in self._can:
            return {}
        return changes_to(row.chunk.metadata, stored.metadata)

    async def _why_extra_stays(self, *, delete_extra: bool) -> str | None:
        """Return why extra chunks may not be deleted; None if they may."""
        if "delete" not in self._can:
            return "the store cannot delete"
        if not await self._store.is_own():
            return "this package did not make the collection"
        notes = await self._catalog.notes()
        identity = await self._store.identity() if "identity" in self._can else None
        if identity is None or identity.journal_id != notes.journal_id:
            return "the collection does not name this journal"
        if not delete_extra and self._counts["extra"] > _FEW_EXTRA * self._in_store:
            return (
                f"they are more than {_FEW_EXTRA:.0%} of the collection: delete them with "
                "verify(repair=True, delete_extra=True) (command: --repair --delete-extra)"
            )
        return None

    async def _delete_extra(self, repairer: Repairer) -> None:
        """Scan again and delete unknown chunks. The first scan counted them and kept no list."""
        async for page in self._store.scan(_PAGE):
            ids = [chunk.id for chunk in page if chunk.id != PROBE_ID]
            known = await self._catalog.recorded(ids)
            if not (unknown := [one for one in ids if one not in known]):
                continue
            outbox = await self._catalog.in_outbox(unknown)
            fresh = [one for one in unknown if one not in outbox]
            if "get" in self._can:
                fresh = list(_by_id(await self._store.get(fresh)))
            deleted = await self._catalog.delete_unknown(fresh)
            repairer.delete(deleted)
            self._deleted += len(deleted)


async def _read_pages(
    read: Callable[[int, int], Awaitable[list[_Row]]], limit: int
) -> AsyncIterator[list[_Row]]:
    """Yield pages of rows that begin with their number, up to the first page that is not full.

    A fast ingest adds rows all the time: there may never be an empty page.
    """
    after, full = 0, True
    while full and (rows := await read(after, limit)):
        yield rows
        after, full = rows[-1][0], len(rows) == limit


def _by_id(chunks: Iterable[Chunk]) -> dict[str, list[Chunk]]:
    found: dict[str, list[Chunk]] = {}
    for chunk in chunks:
        found.setdefault(chunk.id, []).append(chunk)
    return found


def _pages(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), _PAGE):
        yield ids[start : start + _PAGE]
