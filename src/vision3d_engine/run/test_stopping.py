"""A test that is asked to stop ends behind the batch at hand, and keeps what is done."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vision3d_engine.core.errors import WorkerError
from vision3d_engine.distributed.coordination.agreement import Agreement
from vision3d_engine.distributed.coordination.transport_errors import is_lost_connection
from vision3d_engine.loop.case_results import CaseResults
from vision3d_engine.run.stopping import StopRequests, end_program, is_stop, reason_of

# A signal to all reaches workers and other processes first, at times: their end may be noticed before it.
_SIGNAL_S = 1.0


class StopsBehindBatches:
    """Ends the program behind a batch of a test when a signal asks for it.

    Processes agree on nothing, since a test goes on from whatever batches are done.

    Args:
        results: keeps the cases that are done.
        log: says a message of a level.
    """

    def __init__(self, results: CaseResults, log: Callable[..., None]) -> None:
        self._results, self._log = results, log
        self._agreement = Agreement()
        self._requests = StopRequests(self._agreement)

    def after(self, act: Callable[[int], None]) -> Callable[[int], None]:
        """Return what acts after a batch, and then stops if that is asked for."""

        def act_or_stop(iteration: int) -> None:
            act(iteration)
            self._stop_if_asked(self._so_far)

        return act_or_stop

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Notice signals while a block runs; what follows from one, such as a worker that ends, is no error.

        Raises:
            StopRun: when there was one.
        """
        with self._requests.listening():
            try:
                yield
            except Exception as error:
                if isinstance(error, WorkerError) or is_lost_connection(error):
                    self._await_request()
                    self._stop_if_asked(self._so_far)
                raise
            self._stop_if_asked(lambda: "the test has ended")

    def _await_request(self) -> None:
        patience = time.monotonic() + _SIGNAL_S
        while not is_stop(self._agreement.pending) and time.monotonic() < patience:
            time.sleep(_SIGNAL_S / 50)

    def _stop_if_asked(self, state: Callable[[], str]) -> None:
        request = self._agreement.sync_point()
        if request is not None and is_stop(request):
            self._results.keep()
            self._log(f"{reason_of(request)}: stopped; {state()}", level="WARNING")
            end_program(request)

    def _so_far(self) -> str:
        return f"{self._results.done_cases:,} cases{self._results.of_process} are done. Go on with --resume"
