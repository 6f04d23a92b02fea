"""PostgreSQL as the journal: queue, catalog and full text, which several processes share.

The tables and their operations are those of `autoplay_rag/journal/`, whose statements `dialect`
translates. What PostgreSQL needs to do otherwise is written here.

| module | task |
|---|---|
| `journal` | `PostgresJournal`: opens everything, and runs each operation where it may block |
| `address` | the address of a journal |
| `dialect` | a statement for SQLite as a statement for PostgreSQL |
| `connection` | one connection: runs statements, writes many rows at once |
| `database` | transactions, the ledger's counts, errors, lost connections |
| `schema` | the tables, and their creation |
| `moving` | a whole journal from a file into PostgreSQL, or back |
| `migrating` | journal and store made by a role that may, for one that may not |
| `parts` | the channel of notifications |
| `queue` | numbers of payloads and plans, the fence, what several processes must not do at once |
| `fulltext` | the full-text index |
| `finding` | matching passages and sessions |
| `copying` | changes during a re-embedding |
| `reading` | reads beside the writer |
| `member` | one process of several: what it owns, and what it reads of the shared journal |
| `accepted` | what all processes accepted, for live sessions |
| `replicas` | the processes, and what each has |
| `asking` | runs a read on the loop of a link |
| `balance` | which partitions a process takes and gives back (pure) |
| `fence` | what a transaction checks before it writes for a partition (pure) |
| `lease_rows` | the rows of processes, partitions and named leases |
| `leases` | what one process owns, renewed and given back |
| `notices` | notifications of other processes, as a wake-up |
| `presence` | a lock that shows that a process runs |

`PostgresQueue` and `PostgresCatalog` are one class, `PostgresJournal`: one transaction moves a payload
from the queue to the catalog.
"""

from typing import TYPE_CHECKING

from autoplay_rag._lazy import lazy_exports

if TYPE_CHECKING:
    from autoplay_rag.cluster.address import JournalAddress
    from autoplay_rag.cluster.journal import PostgresCatalog, PostgresJournal, PostgresQueue
    from autoplay_rag.cluster.moving import copy_journal

__all__ = [
    "JournalAddress",
    "PostgresCatalog",
    "PostgresJournal",
    "PostgresQueue",
    "copy_journal",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "JournalAddress": "autoplay_rag.cluster.address",
        "PostgresCatalog": "autoplay_rag.cluster.journal",
        "PostgresJournal": "autoplay_rag.cluster.journal",
        "PostgresQueue": "autoplay_rag.cluster.journal",
        "copy_journal": "autoplay_rag.cluster.moving",
    },
)
