"""What a comparison of a journal and its store found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["VerifyReport"]


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The differences between the catalog of a journal and its store, and what was repaired.

    Attributes:
        clean: True if no difference was found.
        checked: How many chunks were compared.
        missing: Chunks that the catalog has as stored, and the store lacks.
        extra: Chunks in the store that the catalog does not know.
        stale: Chunks whose text or metadata differ.
        doubled: Chunks that the store has more than once under one id.
        undeleted: Chunks that are to be deleted and are still in the store, because it refused the
            deletion.
        examples: A few ids for each kind of difference. No texts.
        queued: Chunks queued to be embedded and stored again. `drain` waits for them.
        updated: Chunks whose metadata were corrected in the store.
        deleted: Chunks whose deletion was started. `drain` waits for it.
        unchecked: The kinds of difference that this store cannot show.
        remarks: What was not repaired, and why.

    Example:
        >>> report = VerifyReport(clean=False, checked=7, missing=2, examples={"missing": ("a", "b")})
        >>> str(report)
        '7 chunks checked: 2 missing'
    """

    clean: bool
    checked: int
    missing: int = 0
    extra: int = 0
    stale: int = 0
    doubled: int = 0
    undeleted: int = 0
    examples: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    queued: int = 0
    updated: int = 0
    deleted: int = 0
    unchecked: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        kinds = ("missing", "extra", "stale", "doubled", "undeleted")
        found = [f"{getattr(self, kind):,} {kind}" for kind in kinds if getattr(self, kind)]
        return f"{self.checked:,} chunks checked: {', '.join(found) or 'no difference'}"
