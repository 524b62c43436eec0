"""What trainers and testers share: a session, a model, hooks, logs."""

from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from vision3d_engine.core.errors import RegistrationError
from vision3d_engine.core.tree import describe
from vision3d_engine.distributed.parallel import unwrap_model
from vision3d_engine.loop.hooks import Events
from vision3d_engine.loop.session import Session
from vision3d_engine.writers.protocol import MetricWriter


class Engine:
    """Base of all trainers and testers.

    ``cfg``, ``device``, ``output_dir`` and ``log_dir`` are there for scripts, which may overwrite them: the engine
    itself reads its `Session`.
    """

    def __init__(self, session: Session, cfg: Any, moments: Sequence[str], base: type) -> None:
        self._session = session
        self._events = Events(self, base, moments)
        self._records: dict[tuple[int, int], list[Any]] = {}
        self._runner: Any = None
        self._add_up = session.world.keyed_sums()
        self.model: Any = None
        self.cfg = cfg
        self.device = session.world.device
        self.output_dir = str(session.folders.output)
        self.log_dir = str(session.folders.logs)

    @property
    def args(self) -> Namespace:
        """The command line: the engine's flags, with the settings in force, and the script's own."""
        return self._session.arguments.namespace

    @property
    def log_file(self) -> str | None:
        """Path of this run's text log; None on all processes but the main one."""
        return self._session.logger.log_file

    @property
    def log_steps(self) -> int:
        """Iterations from one log line to the next."""
        return self._session.settings.trainer.log_steps

    def register_model(self, model: nn.Module) -> Any:
        """Move a model to the device and return it for use; with several processes a trainer's shares its gradients.

        With ``trainer.compile`` it is compiled in place (``torch.nn.Module.compile``), so names of weights stay.

        Raises:
            RegistrationError: when it is not a ``torch.nn.Module``.
        """
        if not isinstance(model, nn.Module):
            message = f"register_model got {describe(model)}; it must be a torch.nn.Module"
            raise RegistrationError(message)
        name = type(unwrap_model(model)).__name__
        if (mode := self._session.settings.trainer.compile) is not None:
            self._compile(model, mode)
        self.model = self._wrap(model)
        count = sum(parameter.numel() for parameter in model.parameters())
        self.log(f"model: {name}, {count:,} parameters")
        self.log(f"model description:\n{model}", level="DEBUG")
        return self.model

    def _compile(self, model: nn.Module, mode: str) -> None:
        model.compile(mode=mode)
        if type(model).__module__.startswith("torch.nn."):
            name = type(model).__name__
            message = f"torch does not compile its own class {name} by itself: put it into an nn.Module of yours"
            self.log(message, level="WARNING")

    def _wrap(self, model: nn.Module) -> nn.Module:
        """Return the model on the device, as steps shall call it."""
        return model.to(self._session.world.device)

    def add_hook(self, hook: Any) -> Any:
        """Add a `Hook`, or any object with methods named like moments of the run, and return it."""
        self._events.add(hook)
        return hook

    def log(self, message: Any, level: str = "INFO") -> None:
        """Write a message to the console and to the run's log file; an unknown level is written as INFO."""
        self._session.logger.log(message, level)

    def write_event(self, phase: str, event_dict: Mapping[str, Any], index: int) -> None:
        """Write numbers to TensorBoard (``phase/key``) and ``metrics.jsonl``; tensors are read, so the host waits."""
        self._session.writers.scalars(phase, {key: float(value) for key, value in event_dict.items()}, index)

    def write_points(self, tag: str, points: Any, colors: Any = None, index: int = 0) -> None:
        """Write point clouds for TensorBoard's mesh tab.

        Args:
            tag: name of the clouds.
            points: ``(B, N, 3)`` tensor or array; of more than 20,000 points a cloud, evenly many are left out.
            colors: ``(B, N, 3)``, 0 to 255, or None.
            index: step on TensorBoard's axis.
        """
        self._session.writers.points(tag, points, colors, index)

    def add_writer(self, writer: MetricWriter) -> MetricWriter:
        """Add a writer of numbers beside TensorBoard and ``metrics.jsonl``, and return it; acts on the main process.

        Raises:
            RegistrationError: when it is not a `MetricWriter`.
        """
        self._session.writers.add(writer)
        return writer

    def add_records(self, records: Iterable[Any]) -> None:
        """Keep one record for each sample of the batch at hand, for `gather_records`; in a validation or test step.

        Args:
            records: anything that can be pickled, in the order of the samples; tensors should be on the host.
        """
        self._records.setdefault(self._record_place(), []).extend(records)

    def gather_records(self) -> list[Any]:
        """Return the records of all processes on the main one, in the order of the data set; elsewhere an empty list.

        To be called by all processes, in ``after_val_epoch`` or ``after_test_epoch``; a loader that does not shuffle
        has the data set's order.
        """
        gathered = self._session.world.gather(self._records)
        if not self._session.world.is_main:
            return []
        merged = {place: records for part in gathered for place, records in part.items()}
        return [record for place in sorted(merged) for record in merged[place]]

    def _record_place(self) -> tuple[int, int]:
        """Return where the batch at hand stands among the batches of all processes: batch k is with process k mod n."""
        return self._runner.place[1], self._session.world.rank

    def _require(self, **parts: Any) -> None:
        """Refuse to run without a registered part."""
        for name, part in parts.items():
            if part is None:
                message = f"{type(self).__name__} has no {name.replace('_', ' ')}; call register_{_register_name(name)}"
                raise RegistrationError(message + " before run()")


def _register_name(part: str) -> str:
    return "loader" if part.endswith("_loader") else part
