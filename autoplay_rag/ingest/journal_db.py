"""What happens to payloads in the journal: a queue of what is not stored yet, a catalog of what is.

Rows go in and out by the hundred through SQLite's own JSON functions: one statement, and so one
hand-over of Python's lock, however many rows. A thread that steps row by row beside a busy event
loop waits for that lock at every row.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from autoplay_rag.content.chunks import Accepted
from autoplay_rag.content.identity import NOBODY, People
from autoplay_rag.ingest.journal_file import JournalFile, to_json
from autoplay_rag.ingest.journal_rows import (
    DeadLetter,
    Durability,
    Entry,
    Outcome,
    decoded,
    letters,
)
from autoplay_rag.ingest.plan import Batch, Planner

__all__ = ["JournalDb"]

_KEEP_KEYS_SECONDS = 24 * 3600.0
"""How long a key is known after its payload's chunk is gone, and whose a session is that rests."""
_KEEP_ACKNOWLEDGED_SECONDS = 600.0
"""How long "full" durability keeps what it acknowledged, to store it again after a power loss."""
_AGAIN = 0.0
"""Stands for the time of acknowledgement of what is to be stored again."""
_PLAN_BYTES = 16 * 2**20
"""About the most bytes of payloads planned at once: they are all in memory, more than once."""
_DAMAGED = "the journal's copy of it is damaged"
_SEQ_TABLES = ("queue", "recent", "dead")


class JournalDb(JournalFile):
    """One open journal. Not for use from several threads.

    Args:
        path: The file, made if it is not there; None keeps the journal in memory.
        durability: What an acknowledged commit survives: "normal" the end of the process in any
            way, "full" also of the operating system.
        max_bytes: The most bytes of payloads waiting or dead.
        recent_seconds: How long what was stored stays readable for other processes.
        known: Whether the file is known to be a journal, should nothing in it say so any more.

    Raises:
        JournalDamagedError: If the file is damaged; it was renamed to the name in the message.
        JournalVersionError: If another version of this package wrote it.
        JournalError: If it is another program's file or cannot be opened.
    """

    def __init__(
        self,
        path: Path | None,
        durability: Durability,
        max_bytes: int,
        recent_seconds: float = 0.0,
        *,
        known: bool = True,
    ) -> None:
        self._recent_seconds = recent_seconds if path else 0.0
        self._max_bytes = max_bytes
        self._keep_acknowledged = durability == "full" and path is not None
        super().__init__(path, durability, known=known)

    # -- what moves payloads; each inside a transaction ---------------------------------------

    def accept(self, entries: Sequence[Entry]) -> list[Outcome]:
        """Take payloads in; says what became of each, in order."""
        known = self._known([entry.key for entry in entries])
        outcomes: list[Outcome] = []
        catalogued, queued, dead = [], [], []
        now = time.time()
        for entry in entries:
            outcome: Outcome = entry.outcome
            size = _size(entry.body)
            if outcome != "filtered":
                if entry.key in known:
                    outcome = "duplicate"
                elif self._bytes + size > self._max_bytes:
                    outcome = "overflow"
                else:
                    known.add(entry.key)
                    self._bytes += size
                    payload = entry.payload
                    session = _plain(payload.session_id) if payload else None
                    user = _plain(getattr(payload, "user_id", None))
                    catalogued.append((entry.key, session, user, now))
                    if outcome == "accepted":
                        queued.append((entry.seq, entry.key, entry.lane, entry.body))
                    else:
                        kind = payload.kind if payload else None
                        dead.append(
                            (
                                entry.seq,
                                entry.key,
                                entry.lane,
                                kind,
                                session,
                                entry.error,
                                now,
                                entry.body,
                            )
                        )
            outcomes.append(outcome)
            self.counters["received"] += 1
            self.counters["pending" if outcome == "accepted" else outcome] += 1
        self._insert("catalog (key, session, user, at)", catalogued)
        self._insert("queue (seq, key, lane, body)", queued)
        self._insert("dead (seq, key, lane, kind, session, error, at, body)", dead)
        return outcomes

    def plan(
        self, ids: Sequence[int], seqs: Sequence[Sequence[int]], planner: Planner
    ) -> list[Batch]:
        """Plan batches and record the plans.

        Args:
            ids: A new number for each batch.
            seqs: The payloads of each batch, all of one lane.
            planner: How to plan.

        Returns:
            As many batches as payloads of `_PLAN_BYTES` make, at least one; the last may lack
            payloads at its end. What is not in them is still to be planned.
        """
        seqs = self._as_many_as_fit(seqs)
        rows = {seq: (key, lane, body) for seq, key, lane, body in self._queued(seqs)}
        people = self._people([rows[members[0]][1] for members in seqs])
        batches = []
        for number, members in zip(ids, seqs, strict=False):
            lane = rows[members[0]][1]
            accepted, damaged = [], []
            for seq in members:
                key, _, body = rows[seq]
                payload = decoded(body)
                if payload is None:
                    damaged.append((seq, _DAMAGED))
                else:
                    people[lane] = people.get(lane, NOBODY).after(payload)
                    accepted.append(Accepted(seq, key, payload, people[lane]))
            chunks, unplanned = planner.plan(accepted)
            batches.append(
                Batch(
                    id=number,
                    lane=lane,
                    model=planner.model,
                    chunks=chunks,
                    unplanned=unplanned + damaged,
                )
            )
        self._connection.executemany(
            "INSERT INTO batches (id, record) VALUES (?, ?)",
            [(batch.id, msgspec.msgpack.encode(batch)) for batch in batches],
        )
        self._set_people(people)
        return batches

    def replan(self, batch: Batch, seqs: Sequence[int], planner: Planner) -> Batch:
        """Give each of these payloads of a batch a chunk of its own, and record that."""
        chunks, unplanned = list(batch.chunks), list(batch.unplanned)
        apart = set(seqs)
        people_by_seq = {
            seq: _people_of(chunk.metadata) for chunk in chunks for seq, _ in chunk.sources
        }
        chunks = [c for c in chunks if not apart.intersection(seq for seq, _ in c.sources)]
        for seq, key, _, body in self._queued_one_by_one(seqs):
            payload = decoded(body)
            if payload is None:
                unplanned.append((seq, _DAMAGED))
                continue
            people = people_by_seq[seq].after(payload)
            more, failed = planner.plan([Accepted(seq, key, payload, people)])
            chunks += more
            unplanned += failed
        chunks.sort(key=lambda chunk: chunk.sources[0][0])
        changed = msgspec.structs.replace(batch, chunks=chunks, unplanned=unplanned)
        self._connection.execute(
            "UPDATE batches SET record = ? WHERE id = ?",
            (msgspec.msgpack.encode(changed), batch.id),
        )
        return changed

    def acknowledge(self, batch: Batch, dead: Sequence[tuple[int, str]]) -> None:
        """A batch has ended: all its chunks are stored, except those of the dead payloads.

        Args:
            batch: The batch as it was last planned.
            dead: (sequence number, error) of payloads that could not be stored.
        """
        now = time.time()
        if batch.replayed:
            self._connection.execute(
                "UPDATE batches SET acknowledged = ? WHERE id = ?", (now, batch.id)
            )
            return
        errors = dict(dead)
        chunk_of = {
            key: chunk.id
            for chunk in reversed(batch.chunks)
            for seq, key in chunk.sources
            if seq not in errors
        }
        if errors:
            self._bury(errors, now)
        seqs = sorted({seq for chunk in batch.chunks for seq, _ in chunk.sources} | errors.keys())
        done = [seq for seq in seqs if seq not in errors]
        if self._recent_seconds:
            self._connection.execute(
                "INSERT OR REPLACE INTO recent SELECT seq, at, body FROM queue JOIN catalog USING (key) "
                "WHERE seq IN (SELECT value FROM json_each(?))",
                (to_json(done),),
            )
        self._bytes -= self._drop_queued(done)
        self._connection.execute(
            "UPDATE catalog SET chunk = json_extract(j.value, '$[1]'), "
            "expires = json_extract(j.value, '$[2]') "
            "FROM json_each(?) AS j WHERE catalog.key = json_extract(j.value, '$[0]')",
            (to_json([(key, chunk, self._expiry(now)) for key, chunk in chunk_of.items()]),),
        )
        if self._keep_acknowledged:
            self._connection.execute(
                "UPDATE batches SET acknowledged = ? WHERE id = ?", (now, batch.id)
            )
        else:
            self._connection.execute("DELETE FROM batches WHERE id = ?", (batch.id,))
        stored = len(seqs) - len(errors)
        self.counters["stored"] += stored
        self.counters["dead"] += len(errors)
        self.counters["pending"] -= stored + len(errors)

    def _expiry(self, now: float) -> float | None:
        # In memory a catalog that lives as long as its chunks would grow for ever.
        return None if self._path else now + _KEEP_KEYS_SECONDS

    def _bury(self, errors: dict[int, str], now: float) -> None:
        rows = []
        for seq, _, _, body in self._queued_one_by_one(errors):
            payload = decoded(body)
            kind, session = (payload.kind, _plain(payload.session_id)) if payload else (None, None)
            rows.append((seq, kind, session, errors[seq]))
        # The body goes as it stands: also one that is damaged keeps its bytes.
        self._connection.execute(
            "INSERT INTO dead (seq, key, lane, kind, session, error, at, body) "
            "SELECT queue.seq, queue.key, lane, json_extract(j.value, '$[1]'), "
            "json_extract(j.value, '$[2]'), json_extract(j.value, '$[3]'), ?, body "
            "FROM json_each(?) AS j JOIN queue ON queue.seq = json_extract(j.value, '$[0]')",
            (now, to_json(rows)),
        )
        self._drop_queued(list(errors))

    def overflow(self, entries: Sequence[Entry]) -> list[Outcome]:
        """Count entries that could not be written; the count is saved as soon as it can be."""
        self.owe("received", len(entries))
        self.owe("overflow", len(entries))
        return ["overflow"] * len(entries)

    # -- dead letters and requests ------------------------------------------------------------

    def dead_letters(self, limit: int) -> list[DeadLetter]:
        """The dead letters, oldest first."""
        return letters(self._connection, limit)

    def retry(self, seqs: Sequence[int] | None, new_seqs: Iterator[int]) -> list[tuple[int, int]]:
        """Put dead letters back into the queue.

        Returns:
            (lane, new sequence number) of each that was put back.
        """
        back = []
        for seq, _, lane, body in self._dead(seqs):
            if body is None:
                continue
            new = next(new_seqs)
            back.append((-new if lane < 0 else lane, new))
            self._connection.execute(
                "INSERT INTO queue SELECT ?, key, ?, body FROM dead WHERE seq = ?",
                (new, back[-1][0], seq),
            )
            self._connection.execute("DELETE FROM dead WHERE seq = ?", (seq,))
        self.counters["dead"] -= len(back)
        self.counters["pending"] += len(back)
        return back

    def discard(self, seqs: Sequence[int] | None) -> int:
        """Drop dead letters for good; returns how many."""
        found = self._dead(seqs)
        expires = time.time() + _KEEP_KEYS_SECONDS
        for seq, key, _, body in found:
            self._bytes -= _size(body)
            self._connection.execute("DELETE FROM dead WHERE seq = ?", (seq,))
            self._connection.execute("UPDATE catalog SET expires = ? WHERE key = ?", (expires, key))
        self.counters["dead"] -= len(found)
        self.counters["discarded"] += len(found)
        return len(found)

    def carry_out_requests(self, new_seqs: Iterator[int]) -> list[tuple[int, int]]:
        """Do what other processes asked for; returns what was put back, as `retry` does."""
        back = []
        rows = self._connection.execute("SELECT action, seq FROM requests ORDER BY id").fetchall()
        for action, seq in rows:
            seqs = None if seq is None else [seq]
            if action == "retry":
                back += self.retry(seqs, new_seqs)
            else:
                self.discard(seqs)
        if rows:
            self._connection.execute("DELETE FROM requests")
        return back

    # -- reading ------------------------------------------------------------------------------

    def unfinished(self, planner: Planner) -> list[Batch]:
        """Batches to carry out again, oldest first."""
        if self.unclean:
            # Noted, so that they are not forgotten if this run ends before the store took them.
            self._connection.execute(
                "UPDATE batches SET acknowledged = ? WHERE acknowledged IS NOT NULL", (_AGAIN,)
            )
        rows = self._connection.execute("SELECT record, acknowledged FROM batches ORDER BY id")
        batches = []
        for record, acknowledged in rows.fetchall():
            batch = planner.recounted(msgspec.msgpack.decode(record, type=Batch))
            if acknowledged is None:
                batches.append(batch)
            elif acknowledged == _AGAIN:
                batches.append(msgspec.structs.replace(batch, replayed=True))
        return batches

    def waiting(self, after: int, limit: int) -> list[tuple[int, int]]:
        """(sequence number, lane) of what is in the queue, in order."""
        rows = self._connection.execute(
            "SELECT seq, lane FROM queue WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit)
        )
        return rows.fetchall()

    def count_waiting(self, up_to: int) -> int:
        """How many payloads with numbers up to `up_to` are in the queue."""
        return self._scalar("SELECT count(*) FROM queue WHERE seq <= ?", up_to)

    def last_numbers(self) -> tuple[int, int]:
        """The highest sequence number and the highest batch number known to have been given."""
        return self._last_seq(), self._scalar("SELECT coalesce(max(id), 0) FROM batches")

    def _last_seq(self) -> int:
        # Those who follow the journal count on numbers that only grow, so the highest is noted
        # before the rows that show it are forgotten.
        tables = [self._scalar(f"SELECT coalesce(max(seq), 0) FROM {t}") for t in _SEQ_TABLES]  # noqa: S608
        return max(*tables, self._meta("last_seq") or 0)

    def tokens(self, day: str) -> int:
        """The tokens embedded on a day."""
        found = self._meta("tokens")
        return _count_of(found, day) if found else 0

    def set_tokens(self, day: str, count: int) -> None:
        """Keep the tokens embedded on a day; those of other days are forgotten."""
        self._set_meta("tokens", f"{day} {count}")

    def set_health(self, health: str) -> None:
        """Keep one line that says how things are, for `status`."""
        self._set_meta("health", health)

    # -- helpers ------------------------------------------------------------------------------

    def _known(self, keys: Sequence[str]) -> set[str]:
        found = self._connection.execute(
            "SELECT json_group_array(key) FROM catalog WHERE key IN (SELECT value FROM json_each(?))",
            (to_json(keys),),
        ).fetchone()[0]
        return set(msgspec.json.decode(found))

    def _insert(self, into: str, rows: Sequence[Sequence[Any]], clash: str = "") -> None:
        if rows:
            columns = ", ".join(f"json_extract(value, '$[{i}]')" for i in range(len(rows[0])))
            self._connection.execute(
                f"INSERT {clash} INTO {into} SELECT {columns} FROM json_each(?)",  # noqa: S608 - our names
                (to_json(rows),),
            )

    def _queued(self, seqs: Iterable[Sequence[int]]) -> list[tuple[int, str, int, str]]:
        wanted = [seq for members in seqs for seq in members]
        found = self._connection.execute(
            "SELECT json_group_array(json_array(seq, key, lane, body)) FROM queue "
            "WHERE seq IN (SELECT value FROM json_each(?))",
            (to_json(wanted),),
        ).fetchone()[0]
        return msgspec.json.decode(found, type=list[tuple[int, str, int, str]])

    def _queued_one_by_one(self, seqs: Iterable[int]) -> Iterator[tuple[int, str, int, str]]:
        """For what is rare: many at once may be more than SQLite or memory can hold."""
        for seq in seqs:
            yield from self._queued([[seq]])

    def _as_many_as_fit(self, seqs: Sequence[Sequence[int]]) -> list[Sequence[int]]:
        """The first of them whose payloads have `_PLAN_BYTES` together; at least one payload."""
        wanted = to_json([seq for members in seqs for seq in members])
        sizes = msgspec.json.decode(
            self._connection.execute(
                "SELECT json_group_object(seq, length(CAST(body AS BLOB))) FROM queue "
                "WHERE seq IN (SELECT value FROM json_each(?))",
                (wanted,),
            ).fetchone()[0],
            type=dict[int, int],
        )
        room = _PLAN_BYTES
        fit: list[Sequence[int]] = []
        for members in seqs:
            count = 0
            for seq in members:
                room -= sizes[seq]
                if room < 0 and (fit or count):
                    break
                count += 1
            if count:
                fit.append(members[:count])
            if count < len(members):
                break
        return fit

    def _people(self, lanes: Sequence[int]) -> dict[int, People]:
        found = self._connection.execute(
            "SELECT json_group_array(json_array(lane, user, conversation)) FROM sessions "
            "WHERE lane IN (SELECT value FROM json_each(?))",
            (to_json(lanes),),
        ).fetchone()[0]
        rows = msgspec.json.decode(found, type=list[tuple[int, str | None, str | None]])
        return {lane: People(user, conversation) for lane, user, conversation in rows}

    def _set_people(self, people: dict[int, People]) -> None:
        now = time.time()
        rows = [
            (lane, _plain(found.user_id), _plain(found.conversation_id), now)
            for lane, found in people.items()
            if lane > 0 and any(found)
        ]
        self._insert("sessions (lane, user, conversation, at)", rows, "OR REPLACE")

    def _drop_queued(self, seqs: Sequence[int]) -> int:
        """Take rows off the queue; returns how many bytes they held."""
        given = to_json(seqs)
        held = self._scalar(
            "SELECT coalesce(sum(length(CAST(body AS BLOB))), 0) FROM queue WHERE seq IN (SELECT value FROM json_each(?))",
            given,
        )
        self._connection.execute(
            "DELETE FROM queue WHERE seq IN (SELECT value FROM json_each(?))", (given,)
        )
        return held

    def _dead(self, seqs: Sequence[int] | None) -> list[tuple[int, str, int, str | None]]:
        which = "" if seqs is None else " WHERE seq IN (SELECT value FROM json_each(?))"
        given = () if seqs is None else (to_json(seqs),)
        rows = self._connection.execute(
            f"SELECT seq, key, lane, body FROM dead{which} ORDER BY seq",  # noqa: S608 - our names
            given,
        )
        return rows.fetchall()

    def forget(self) -> None:
        """Drop what has expired."""
        now = time.time()
        self._set_meta("last_seq", self._last_seq())
        self._connection.execute("DELETE FROM catalog WHERE expires < ?", (now,))
        self._connection.execute("DELETE FROM sessions WHERE at < ?", (now - _KEEP_KEYS_SECONDS,))
        self._connection.execute("DELETE FROM recent WHERE at < ?", (now - self._recent_seconds,))
        self._connection.execute(
            "DELETE FROM batches WHERE acknowledged > ? AND acknowledged < ?",
            (_AGAIN, now - _KEEP_ACKNOWLEDGED_SECONDS),
        )


def _size(body: str | None) -> int:
    return len(body.encode()) if body else 0


def _people_of(metadata: Mapping[str, object]) -> People:
    known = {name: metadata.get(name) for name in People._fields}
    return People(**{name: value for name, value in known.items() if isinstance(value, str)})


def _plain(value: str | None) -> str | None:
    # SQLite's JSON functions end a text at its first NUL.
    return value.replace("\0", "\ufffd") if value else None


def _count_of(found: str, day: str) -> int:
    kept_day, _, count = found.partition(" ")
    return int(count) if kept_day == day else 0
