"""Processes that wait for one of them however long: in their store, and in no exchange that has a limit."""

from vision3d_engine.distributed.coordination.store import own_connection


class Hold:
    """Holds the processes of a run until one lets them go. Here nobody is held."""

    def release(self) -> None:
        """Let all go."""

    def is_over(self) -> bool:
        """Tell whether they may go; costs a question to the store."""
        return True


class StoreHold(Hold):
    """Holds several processes.

    Args:
        name: tells it from others of the same processes.
    """

    def __init__(self, name: str) -> None:
        self._store = own_connection(f"hold/{name}")

    def release(self) -> None:
        """Let all go."""
        self._store.set("over", "")

    def is_over(self) -> bool:
        """Tell whether they may go; costs a question to the store."""
        return self._store.check(["over"])
