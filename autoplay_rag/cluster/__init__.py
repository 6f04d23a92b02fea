"""Several processes on one PostgreSQL journal.

| module | task |
|---|---|
| `balance` | which partitions a worker takes and gives back (pure) |
| `fence` | what a transaction checks before it writes for a partition (pure) |
| `leases` | the rows in PostgreSQL by which workers own partitions, and named leases |
"""
