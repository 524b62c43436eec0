"""Notice losses, weights and gradients that are not finite, and note where that began."""

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from vision3d_engine.core.errors import FolderError, NonFiniteError, shortened
from vision3d_engine.core.files import make_folder
from vision3d_engine.core.replay_command import replay_command
from vision3d_engine.core.tracebacks import line_in
from vision3d_engine.distributed.parallel.shards import local_part
from vision3d_engine.distributed.parallel.wrapping import unwrap_model

_MAX_NAMES = 5
_ANOMALY = "Error detected in "
_OF_ANOMALY = "returned nan values in its"  # torch has no class for the error of its anomaly detection
# A look at the weights costs as much as a tiny step, so log lines that follow each other faster share one.
_LOOK_EVERY_S = 1.0


class NonFiniteNotes:
    """Notes in ``nonfinite.jsonl`` at which steps numbers were not finite, a line each, with the command of a replay.

    Args:
        folder: where the file lies.
        is_main: whether this process writes it.

    Attributes:
        first: the first step that was noted; None before.
    """

    def __init__(self, folder: Path, is_main: bool) -> None:
        self._folder, self._is_main = folder, is_main
        self.first: int | None = None

    def note(self, why: str, step: int, epoch: int, iteration: int) -> str:
        """Note a step, and return the command that replays it; where the file cannot be written, only the log says it.

        Args:
            why: what was not finite, or what became of the step.
            step: training batches since the start of the run.
            epoch: its epoch.
            iteration: its iteration there.
        """
        self.first = step if self.first is None else self.first
        row = {"step": step, "epoch": epoch, "iteration": iteration, "why": why, "replay": replay_command(step)}
        with suppress(OSError, FolderError):
            if self._is_main:
                with (make_folder(self._folder) / "nonfinite.jsonl").open("a") as file:
                    file.write(json.dumps(row) + "\n")
        return row["replay"]

    def advice(self, step: int) -> str:
        """Return what to do about weights that are not finite behind so many steps."""
        if self.first is None:
            return f"Look into the step, or the last ones before it: {replay_command(step)}" if step else ""
        return f"Look into the first step that was not finite: {replay_command(self.first)}"


class FiniteWatch:
    """Notices at log lines, where the device is read anyway, that the loss or a weight is no longer finite.

    Args:
        model: whose parameters are watched.
        stops: raise an error; else the loss alone is looked at, and its first such step of the run is said once.
        notes: where the step is noted; those of the run.
        is_spread: each process holds a part of the weights. They are then looked at only when the loss, which all
            processes know alike, is not finite.
        gather: returns the values of all processes.
        warn: told of a step where the run goes on.
    """

    def __init__(
        self,
        model: nn.Module,
        stops: bool,
        notes: NonFiniteNotes,
        *,
        is_spread: bool,
        gather: Callable[[Any], list[Any]],
        warn: Callable[[str], object],
    ) -> None:
        self._model = model
        self._stops = stops
        self._notes, self._gather, self._warn = notes, gather, warn
        self._looked_at = -math.inf
        self._is_spread = is_spread

    def probe(self) -> tuple[torch.Tensor, ...]:
        """Return one number on the device that is finite while all weights are, to be read with the log line's.

        Nothing is returned within a second of the last look.
        """
        now = time.monotonic()
        if not self._stops or self._is_spread or now - self._looked_at < _LOOK_EVERY_S:
            return ()
        self._looked_at = now
        weights = [local_part(each).detach() for each in self._model.parameters() if _can_be_nan(each)]
        return (torch.nn.utils.get_total_norm(weights),) if weights else ()

    def check(self, loss: float, probed: Sequence[float], first: int | None, progress: Any) -> None:
        """Judge what a log line has read.

        Args:
            loss: the mean of the loss since the last line, over all processes.
            probed: what `probe` returned, read.
            first: the iteration that first had a loss that is not finite on this process, if known.
            progress: the counters of the run.

        Raises:
            NonFiniteError: naming the first such step of all processes, how it is replayed, and the parameters.
        """
        is_known = not self._stops and self._notes.first is not None
        if is_known or all(map(math.isfinite, (loss, *probed))):
            return
        names = non_finite_parameters(self._model)
        if not math.isfinite(loss):
            found = self._gather((first, names))
            first = min((each for each, _ in found if each is not None), default=None)
            names = list(dict.fromkeys(name for _, of_process in found for name in of_process))
        elif not names:
            return
        where = f"epoch {progress.epoch}, {'since' if first else 'at'} iteration {first or progress.iteration}"
        holding = f"(loss {loss}). Weights with NaN or infinity: {shortened(names, _MAX_NAMES)}"
        self._tell(f"the training is no longer finite: {where} {holding}. ", first or progress.iteration, progress)

    def _tell(self, message: str, iteration: int, progress: Any) -> None:
        """Note the step, and say what to do about it."""
        step = progress.total_steps - progress.iteration + iteration
        why = "the run has stopped" if self._stops else "the run goes on"
        message += _WHAT_TO_DO.format(self._notes.note(why, step, progress.epoch, iteration))
        if self._stops:
            raise NonFiniteError(f"{message} {_WAYS_ON}")
        self._warn(f"{message} The run goes on, since trainer.nonfinite is 'ignore'; this is said once")


_WHAT_TO_DO = (
    "Look into the step: {}. Where a weight was broken before it, that names the command for the step before; --debug "
    "stops a run in the very step."
)
_WAYS_ON = (
    "A lower learning rate or clipped gradients help where numbers grow, and nowhere else; trainer.nonfinite 'skip' "
    "leaves such updates out. No good checkpoint was replaced"
)


def _can_be_nan(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor's type has NaN and a norm; types of 8 bits, and lazy ones without numbers, have none."""
    return not is_lazy(tensor) and (tensor.is_floating_point() or tensor.is_complex()) and tensor.element_size() > 1


def non_finite_parameters(model: nn.Module) -> list[str]:
    """Return the names of parameters that hold NaN or infinity here; waits for the device for each.

    Of spread parameters the part of this process counts.
    """
    named = [(name, each) for name, each in unwrap_model(model).named_parameters() if _can_be_nan(each)]
    wrong = [name for name, each in named if not torch.isfinite(local_part(each.detach())).all()]
    return [name.replace("_orig_mod.", "") for name in wrong]


def non_finite_gradients(model: nn.Module) -> list[str]:
    """Return the names of parameters whose gradient holds NaN or infinity; waits for the device.

    Parameters without a gradient (frozen, or not reached) are passed over; of spread ones this process's part counts.
    """
    named = [(name, parameter.grad) for name, parameter in model.named_parameters() if parameter.grad is not None]
    return [name for name, gradient in named if not torch.isfinite(_numbers_of(gradient)).all()]


def _numbers_of(gradient: torch.Tensor) -> torch.Tensor:
    """Return the part of a gradient that is here; of a sparse one, as embeddings have, the numbers that it holds."""
    part = local_part(gradient)
    return part.coalesce().values() if part.is_sparse else part


class DebugChecks:
    """Checks in each step of a debug run that loss and gradients are finite; the device is waited for twice a step.

    The process whose step is to blame raises, and its failure is told to all others.

    Args:
        model: whose gradients are looked at.
        epoch: the running epoch.
        skipped: takes an error instead of its being raised, where an update with such gradients is skipped; else None.
    """

    def __init__(self, model: nn.Module, epoch: int, skipped: Callable[[NonFiniteError], None] | None) -> None:
        self._model, self._epoch, self._skipped = model, epoch, skipped

    def over(self, step: Callable[[int, Any], tuple[Any, Any, Any]]) -> Callable[[int, Any], tuple[Any, Any, Any]]:
        """Return a step whose loss is checked before it is walked back; no scale is to blame for that."""

        def checked(iteration: int, data_dict: Any) -> tuple[Any, Any, Any]:
            loss, *dicts = step(iteration, data_dict)
            if isinstance(loss, torch.Tensor) and not torch.isfinite(loss.detach()).all():
                raise self._failure(iteration, f"the loss is {loss.detach().float().mean().item()}")
            return loss, *dicts

        return checked

    def around(self, iterate: Callable[[int, Any], None]) -> Callable[[int, Any], None]:
        """Return an iteration that says where autograd's anomaly detection has stopped its backward pass."""

        def told(iteration: int, data_dict: Any) -> None:
            with _anomalies_heard() as heard:
                try:
                    iterate(iteration, data_dict)
                except RuntimeError as error:
                    if _OF_ANOMALY not in str(error):
                        raise
                    line = line_in("".join(heard))
                    what = f"{str(error).rstrip('.')} in the backward pass{f', of {line}' if line else ''}"
                    raise self._failure(iteration, what) from error

        return told

    def check_gradients(self, _epoch: int, iteration: int, *_dicts: Any) -> None:
        """Look at the norm of the gradients, and for names only when it is not finite.

        Raises:
            NonFiniteError: naming the parameters.
        """
        gradients = [_numbers_of(each.grad) for each in self._model.parameters() if each.grad is not None]
        if not gradients or torch.nn.utils.get_total_norm(gradients).isfinite():
            return
        if names := non_finite_gradients(self._model):  # the norm of large numbers may be infinite
            failure = self._failure(iteration, f"the gradient is not finite in {shortened(names, _MAX_NAMES)}")
            if self._skipped is None:
                raise failure
            self._skipped(failure)

    def _failure(self, iteration: int, what: str) -> NonFiniteError:
        return NonFiniteError(f"epoch {self._epoch}, iteration {iteration}: {what}")


@contextmanager
def _anomalies_heard() -> Iterator[list[str]]:
    """Collect the warnings in which anomaly detection says where the forward pass was; all are shown as ever.

    Backward passes may run in threads of torch's own, so what shows the warnings of the process is asked.
    """
    heard: list[str] = []
    show = warnings.showwarning

    def listen(message: Warning | str, *args: Any, **options: Any) -> None:
        if str(message).startswith(_ANOMALY):
            heard.append(str(message))
        show(message, *args, **options)

    warnings.showwarning = listen
    try:
        yield heard
    finally:
        warnings.showwarning = show
