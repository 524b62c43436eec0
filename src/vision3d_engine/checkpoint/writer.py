"""Jobs that write files, one after the other, in a thread or at once."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

_MAX_WAITING = 2


class BackgroundWriter:
    """Runs jobs in order; two never run at the same time.

    A failure in the thread is kept until someone asks: `failures` for those of the past, `join` for all.

    Args:
        in_background: run jobs in a thread; at most two wait, then `submit` waits for the oldest.
    """

    def __init__(self, in_background: bool = False) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-writer") if in_background else None
        self._jobs: deque[Future] = deque()
        self._failed: list[BaseException] = []

    def submit(self, job: Callable[[], None]) -> None:
        """Run a job, or queue it; without a thread its exception is raised here."""
        if self._executor is None:
            job()
            return
        while len(self._jobs) >= _MAX_WAITING:
            self._collect(self._jobs.popleft())
        self._jobs.append(self._executor.submit(job))

    def failures(self, in_lockstep: bool = False) -> list[BaseException]:
        """Return, once, what went wrong in the jobs that have ended; does not wait.

        Args:
            in_lockstep: look only at jobs that `submit` has waited for, so that several processes with the same jobs
                are told the same at the same moment, however fast each of them is.
        """
        while not in_lockstep and self._jobs and self._jobs[0].done():
            self._collect(self._jobs.popleft())
        failed, self._failed = self._failed, []
        return failed

    def wait(self) -> None:
        """Wait for all jobs; what went wrong is still told by `failures` and `join`."""
        wait(self._jobs)

    def join(self) -> BaseException | None:
        """Wait for all jobs and return what went wrong in the last one."""
        error = self._jobs[-1].exception() if self._jobs else None
        while self._jobs:
            self._collect(self._jobs.popleft())
        if error is not None:
            self._failed.remove(error)
        return error

    def _collect(self, job: Future) -> None:
        """Wait for a job and keep what went wrong."""
        if (error := job.exception()) is not None:
            self._failed.append(error)
