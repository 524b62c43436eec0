"""What a script writes: messages, numbers, clouds, and records that are gathered over processes."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vision3d_engine.loop.context import PassContext
from vision3d_engine.loop.pass_metrics import MetricHandle
from vision3d_engine.loop.records import SampleRecords
from vision3d_engine.writers.protocol import MetricWriter


class Outlets:
    """The log and the writers of one trainer or tester, as a script uses them.

    Args:
        context: has the log, the writers and the processes.
    """

    def __init__(self, context: PassContext) -> None:
        self._context = context
        self._records = SampleRecords(context.world)
        self._pass: Any = None

    @property
    def log_file(self) -> str | None:
        """Path of this run's text log; None on all processes but the main one."""
        return self._context.logger.log_file

    def add_writer(self, writer: MetricWriter) -> MetricWriter:
        """Add a writer of numbers beside TensorBoard and ``metrics.jsonl``, and return it; acts on the main process.

        Raises:
            RegistrationError: when it is not a `MetricWriter`.
        """
        self._context.writers.add(writer)
        return writer

    def log(self, message: Any, level: str = "INFO") -> None:
        """Write a message to the console and to the run's log file; an unknown level is written as INFO."""
        self._context.logger.log(message, level)

    def _line_writer(self) -> Callable[[Callable[[], str]], None]:
        """Return what logs a line that a thread puts together later; a `log` of the script's own gets it at once."""
        if getattr(type(self), "log", None) is Outlets.log and "log" not in vars(self):
            return self._context.logger.line
        return lambda make: self.log(make())

    def write_event(self, phase: str, event_dict: Mapping[str, Any], index: int) -> None:
        """Write numbers to TensorBoard (``phase/key``) and ``metrics.jsonl``; tensors are read, so the host waits."""
        self._context.writers.scalars(phase, {key: float(value) for key, value in event_dict.items()}, int(index))

    def write_points(self, tag: str, points: Any, colors: Any = None, index: int = 0) -> None:
        """Write point clouds for TensorBoard's mesh tab.

        Args:
            tag: name of the clouds.
            points: ``(B, N, 3)`` tensor or array; of more than 20,000 points a cloud, evenly many are left out.
            colors: ``(B, N, 3)``, 0 to 255, or None.
            index: step on TensorBoard's axis.
        """
        self._context.writers.points(tag, points, colors, int(index))

    def register_metric(self, name: str, metric: Any) -> MetricHandle:
        """Register a number over a whole set, and return what takes in its batches, in training, validation and test.

        Each pass over a set has a state of its own, which starts empty; what processes have counted is merged at its
        end. The numbers are then in ``summary_dict``, the log, ``metrics.jsonl`` and TensorBoard as ``NAME/KEY``, of
        one of several validation sets as ``SET/NAME/KEY``; a metric with a single number is called NAME. A pass in
        whose steps it is not updated has none of them.

        Args:
            name: what its numbers are called.
            metric: one of `vision3d_engine.metrics`, one of torchmetrics, or any object with ``update``, ``compute``,
                ``reset`` and, for several processes, ``merge_state(others)``. It stays as it is: passes work with
                copies.

        Raises:
            RegistrationError: when it lacks one of these methods or cannot be merged, and for a name that is taken.
        """
        return self._context.metrics.register(name, metric)

    def add_records(self, records: Iterable[Any]) -> None:
        """Keep one record for each sample of the batch at hand, for `gather_records`; in a validation or test step.

        Args:
            records: anything that can be pickled, in the order of the samples; tensors should be on the host.
        """
        self._records.add(records, self._pass.runner.place[1])

    def gather_records(self, name: str | None = None) -> list[Any]:
        """Return the records of all processes on the main one, in the order of the data set; elsewhere an empty list.

        To be called by all processes, in ``after_val_epoch`` or ``after_test_epoch``; a loader that does not shuffle
        has the data set's order.

        Args:
            name: of a validation set, where several are registered; None for the records of all, set after set.

        Raises:
            RegistrationError: for a name that no set has.
        """
        return self._records.gather(name)
