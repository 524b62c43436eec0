"""Writes files and journal lines behind the test, in the order in which they are handed in."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vision3d_engine.core.background import BackgroundListener
from vision3d_engine.core.errors import FolderError

# So many bytes may wait for the disk before a step waits for it, so that memory stays flat.
_MOST_WAITING = 2**28
Job = tuple[Callable[[], object], int]
"""What to do, and how many bytes it holds until it is done."""


class OrderedWriter:
    """A thread that does jobs one after the other, and none any more after the first that fails.

    Args:
        folder: where they write, for messages.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listener = BackgroundListener(self._do)
        self._error: Exception | None = None
        self._handed = self._done = 0  # bytes; each is changed by one thread alone

    def put(self, job: Callable[[], object], size: int = 0) -> None:
        """Hand a job in, after those before; waits when much is waiting.

        Raises:
            FolderError: when an earlier job could not be done.
        """
        self._raise_failure()
        self._handed += size
        self._listener.put((job, size))
        if self._handed - self._done > _MOST_WAITING:
            self.flush()

    def flush(self) -> None:
        """Wait until all jobs are done.

        Raises:
            FolderError: when one could not be done.
        """
        self.close()
        self._raise_failure()

    def close(self) -> None:
        """Wait until all jobs are done, or one has failed."""
        self._listener.flush()

    def _do(self, jobs: Sequence[Any]) -> None:
        for job, size in jobs:
            try:
                if self._error is None:
                    job()
            except Exception as error:  # noqa: BLE001  it is raised where the test is
                self._error = error
            self._done += size

    def _raise_failure(self) -> None:
        if self._error is not None:
            with as_folder_error(self._folder):
                raise self._error


@contextmanager
def as_folder_error(folder: Path) -> Iterator[None]:
    """Turn what the system says of a disk into an error that says what to do.

    Raises:
        FolderError: for an `OSError` of the block.
    """
    try:
        yield
    except OSError as error:
        message = f"results cannot be written into '{folder}': {error.strerror or error}. Make space, or allow to "
        raise FolderError(f"{message}write there, and go on with --resume: what is done stays") from error
