"""Several processes on one PostgreSQL journal.

| module | task |
|---|---|
| `balance` | which partitions a worker takes and gives back (pure) |
| `fence` | what a transaction checks before it writes for a partition (pure) |
| `lease_rows` | the rows of workers, partitions and named leases |
| `member` | one process of the cluster: its leases and what it reads of the shared journal |
| `leases` | what one process owns, renewed and given back |
| `notices` | notifications of other processes, as a wake-up |
"""
