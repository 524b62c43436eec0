"""Batches that a data worker cannot hand over: told where they are awaited, instead of dropped."""

import contextlib
from collections.abc import Callable, Iterator
from multiprocessing.queues import Queue
from typing import Any

from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader

from vision3d_engine.core.errors import WorkerError
from vision3d_engine.data.worker_limits import advice_on


@contextlib.contextmanager
def telling_workers(loader: Any) -> Iterator[None]:
    """Let the workers that a loader starts in a block send an error for a batch that they cannot send."""
    if not isinstance(loader, DataLoader):
        yield
        return
    init = loader.worker_init_fn
    loader.worker_init_fn = _TellingInit(init)
    try:
        yield
    finally:
        loader.worker_init_fn = init


class _TellingInit:
    """A ``worker_init_fn`` that comes before the user's own; it can be pickled if that one can."""

    def __init__(self, init: Callable[[int], None] | None) -> None:
        self._init = init

    def __call__(self, worker_id: int) -> None:
        # A batch is pickled by a thread of the queue, which prints what it raises and drops the batch; there is no
        # public way to hear of it.
        Queue._on_queue_feeder_error = _send_error  # noqa: SLF001  # pyright: ignore[reportAttributeAccessIssue]
        if self._init is not None:
            self._init(worker_id)


def _send_error(queue: Any, error: BaseException, item: Any) -> None:
    """Send an error in the place of a numbered batch, as torch's workers do for one that could not be loaded."""
    text = f"{type(error).__name__}: {error}"
    told = WorkerError(f"a data worker cannot hand over its batch: {text}. {advice_on(text) or _FIX}")
    queue.put((item[0], ExceptionWrapper((WorkerError, told, error.__traceback__), "in a data worker")))


_FIX = "What a data set or collate_fn returns goes to another process: it must be what pickle takes, with no open files"
