"""Retires the actions that a summary replaces: which ones, and when."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from autoplay_rag._background import BackgroundWork
from autoplay_rag._serial import SerialThread
from autoplay_rag.errors import JournalError
from autoplay_rag.journal.base import Claim, Claimable, Journal
from autoplay_rag.journal.bodies import decoded, unpack
from autoplay_rag.journal.ownership import owns_everything
from autoplay_rag.payloads import ActionsPayload

__all__ = ["Decision", "Retirer", "decide"]

_RETRY_SECONDS: Final = 1.0


class Decision(NamedTuple):
    """Which actions are claimed.

    Attributes:
        used: By the number of a claim, how many actions it claims.
        claimed: By the number of a payload, how many more of its actions are claimed.
    """

    used: dict[int, int]
    claimed: dict[int, int]


def decide(claims: Sequence[Claim], times: Sequence[tuple[int, Sequence[float]]]) -> Decision:
    """Give each claim the oldest unclaimed actions that are not later than its summary.

    Args:
        claims: A session's open claims, in the order in which the summaries arrived.
        times: By payload, the times of its unclaimed actions.

    Example:
        >>> claims = [Claim(9, 1, until=20.0, remaining=2)]
        >>> decide(claims, [(1, [10.0]), (2, [15.0, 30.0]), (3, [16.0])])
        Decision(used={9: 2}, claimed={1: 1, 2: 1})
    """
    oldest = sorted((at, seq) for seq, some in times for at in some)
    used: dict[int, int] = {}
    claimed: dict[int, int] = {}
    for claim in claims:
        rest = []
        for at, seq in oldest:
            if at <= claim.until and used.get(claim.seq, 0) < claim.remaining:
                used[claim.seq] = used.get(claim.seq, 0) + 1
                claimed[seq] = claimed.get(seq, 0) + 1
            else:
                rest.append((at, seq))
        oldest = rest
    return Decision(used, claimed)


class Retirer(BackgroundWork):
    """Lets stored summaries claim stored actions, and has retired chunks deleted from the store.

    Args:
        journal: Has claims and actions.
        delete: Deletes chunks that are in the outbox.
        owns: Tells for a lane whether this process may work on it now. Two processes that decide on
            one session would claim more actions than its summaries replace.
    """

    def __init__(
        self,
        journal: Journal,
        delete: Callable[[Sequence[str]], None],
        owns: Callable[[int], bool] = owns_everything,
    ) -> None:
        super().__init__("retiring replaced actions failed", longest_pause=_RETRY_SECONDS)
        self._journal = journal
        self._delete = delete
        self._owns = owns
        self._thread = SerialThread("autoplay-retire")
        self._open: set[int] = set()
        self._due: set[int] = set()

    async def resume(self) -> None:
        """Resume the claims of an earlier run, or of another process."""
        found = {lane for lane in await self._journal.claim_lanes() if self._owns(lane)}
        self._open |= found
        self._look(found)

    def stored(self, lanes: Iterable[int], summaries: bool) -> None:
        """Look at sessions of which something was stored.

        Args:
            lanes: The sessions.
            summaries: Whether a summary may be among what was stored.
        """
        found = set(lanes)
        if summaries:
            self._open |= found
        self._look(found & self._open)

    def _look(self, lanes: set[int]) -> None:
        if lanes:
            self._due |= lanes
            self.wake()

    async def _work(self) -> None:
        while self._due:
            lane = self._due.pop()
            try:
                await self._claim(lane)
            except JournalError:
                self._due.add(lane)
                raise

    async def _claim(self, lane: int) -> None:
        claims, payloads = await self._journal.open_claims(lane)
        if not claims:
            if lane not in self._due:  # otherwise something was stored meanwhile
                self._open.discard(lane)
            return
        times = await self._thread.run(_times_of, payloads)
        decision = decide(claims, times)
        if decision.claimed and self._owns(lane):
            self._delete(await self._journal.apply_claims(decision.used, decision.claimed))


def _times_of(payloads: Sequence[Claimable]) -> list[tuple[int, list[float]]]:
    """The times of unclaimed actions: their own, else those of their payload, else its arrival."""
    found = []
    for one in payloads:
        payload = decoded(unpack(one.body))
        own: list[float] = []
        if isinstance(payload, ActionsPayload):
            own = [action.timestamp_start or payload.forwarded_at for action in payload.actions]
        else:
            own = [one.ended or 0.0] * (one.unclaimed + one.claimed)
        times = sorted(at or one.at for at in own)
        found.append((one.seq, times[one.claimed :]))
    return found
