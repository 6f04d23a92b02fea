"""What was done to a journal and its store as a whole, or found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["CopyReport", "ReembedReport", "VerifyReport"]


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


@dataclass(frozen=True, slots=True)
class ReembedReport:
    """What a re-embedding did.

    Attributes:
        model: The model of all vectors from now on.
        chunks: The chunks embedded in this run, those that changed meanwhile included.
        refused: The chunks that the new model refused. They are tried again, and end as dead
            letters if it refuses them again.
        rendered: The chunks whose text changed.
        seconds: How long it took.
    """

    model: str
    chunks: int
    refused: int
    rendered: int
    seconds: float

    def __str__(self) -> str:
        text = f"{self.chunks:,} chunks embedded with {self.model} in {self.seconds:,.0f} s"
        if self.rendered:
            text += f", {self.rendered:,} with another text"
        return text + (f"; {self.refused:,} were refused" if self.refused else "")


@dataclass(frozen=True, slots=True)
class CopyReport:
    """What was copied from one store to another.

    Attributes:
        chunks: The chunks that the source has.
        copied: Those that were embedded and stored.
        same: Those that the target had already.
        skipped: Those that the journal does not know. They stay where they are.
        refused: Those that the embedder or the target refused.
        missing: Chunks that the journal has as stored, and the source lacks.
        seconds: How long it took.

    Example:
        >>> str(CopyReport(chunks=7, copied=5, same=2, seconds=1.0))
        '7 chunks: 5 copied, 2 there already, in 1 s'
    """

    chunks: int
    copied: int
    same: int = 0
    skipped: int = 0
    refused: int = 0
    missing: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        named = {
            "copied": self.copied,
            "there already": self.same,
            "unknown to the journal": self.skipped,
            "refused": self.refused,
            "missing in the source": self.missing,
        }
        found = ", ".join(f"{count:,} {what}" for what, count in named.items() if count)
        return f"{self.chunks:,} chunks: {found or 'none copied'}, in {self.seconds:,.0f} s"
