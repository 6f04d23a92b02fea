"""A store in memory whose state at an earlier moment can be made again, as a crash would leave it."""

from __future__ import annotations

from autoplay_rag.stores import MemoryStore

_OPERATIONS = ("start", "upsert", "delete", "update_metadata", "save_identity", "exchange", "drop")


class PersistentStore(MemoryStore):
    """Counts as a store on disk: what is missing in it is an error."""

    persistent = True


class WatchedStore(PersistentStore):
    """Notes each operation that succeeded, of its siblings too.

    Attributes:
        operations: The operations, as (sibling, name, arguments).
        on_operation: Called after each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[str, str, tuple]] = []
        self.on_operation = lambda: None
        self.label = ""

    def sibling(self, name):
        found = super().sibling(name)
        found.operations, found.label = self.operations, name
        found.on_operation = lambda: self.on_operation()  # noqa: PLW0108 - it is set later
        return found

    async def replay(self, operations) -> WatchedStore:
        """Do these operations again."""
        for label, name, args in operations:
            await getattr(self.sibling(label) if label else self, name)(*args)
        return self


def _watched(name):
    async def operation(self, *args):
        await getattr(PersistentStore, name)(self, *args)
        self.operations.append((self.label, name, args))
        self.on_operation()

    return operation


for _name in _OPERATIONS:
    setattr(WatchedStore, _name, _watched(_name))
