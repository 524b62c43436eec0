"""Notice weights and gradients that are not finite, and keep the batch that made them."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from vision3d_engine.core.errors import NonFiniteError, shortened
from vision3d_engine.core.files import atomic_write, make_folder
from vision3d_engine.core.tree import to_cpu
from vision3d_engine.distributed.parallel.shards import local_part
from vision3d_engine.distributed.parallel.wrapping import unwrap_model

_MAX_NAMES = 5
_OF_ANOMALY = "returned nan values in its"  # torch has no class for the error of its anomaly detection
# A look at the weights costs as much as a tiny step, so log lines that follow each other faster share one.
_LOOK_EVERY_S = 1.0


class FiniteWatch:
    """Notices at log lines, where the device is read anyway, that the loss or a weight is no longer finite.

    Args:
        model: whose parameters are watched.
        enabled: whether to look at all.
        is_spread: each process holds a part of the weights. They are then looked at only when the loss, which all
            processes know alike, is not finite.
        gathered: returns the names that any process has found.
    """

    def __init__(
        self, model: nn.Module, enabled: bool = True, *, is_spread: bool = False, gathered: Callable[..., Any] = list
    ) -> None:
        self._model = model
        self._enabled = enabled
        self._gathered = gathered
        self._looked_at = -math.inf
        self._is_spread = is_spread

    def probe(self) -> tuple[torch.Tensor, ...]:
        """Return one number on the device that is finite while all weights are, to be read with the log line's.

        Nothing is returned within a second of the last look.
        """
        now = time.monotonic()
        if not self._enabled or self._is_spread or now - self._looked_at < _LOOK_EVERY_S:
            return ()
        self._looked_at = now
        weights = [local_part(each).detach() for each in self._model.parameters() if _can_be_nan(each)]
        return (torch.nn.utils.get_total_norm(weights),) if weights else ()

    def check(self, loss: float, probed: Sequence[float], epoch: int, first: int | None, iteration: int) -> None:
        """Judge what a log line has read.

        Args:
            loss: the mean of the loss since the last line.
            probed: what `probe` returned, read.
            epoch: the running epoch.
            first: the iteration that first had a loss that is not finite, if known.
            iteration: the running iteration.

        Raises:
            NonFiniteError: naming step and parameters.
        """
        if not self._enabled or all(map(math.isfinite, (loss, *probed))):
            return
        names = self._gathered(non_finite_parameters(self._model))
        if math.isfinite(loss) and not names:
            return
        message = (
            f"the training is no longer finite: epoch {epoch}, "
            f"{f'since iteration {first}' if first is not None else f'at iteration {iteration}'} (loss {loss}). "
            f"Weights with NaN or infinity: {shortened(names, _MAX_NAMES)}. No good checkpoint was replaced. "
            "Run with --resume --debug to stop in the very step and keep its batch; lower the learning rate or clip "
            "the gradients; or set trainer.nonfinite to 'skip' or 'ignore'"
        )
        raise NonFiniteError(message)


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
    return [name for name, gradient in named if not torch.isfinite(local_part(gradient)).all()]


class DebugChecks:
    """Checks in each step of a debug run that loss and gradients are finite; the device is waited for twice a step.

    The process whose step is to blame raises, and its failure is told to all others.

    Args:
        model: whose gradients are looked at.
        are_skipped: an update with such gradients is skipped, as an overflow of scaled losses is: no fault.
        epoch: the running epoch.
        folder: where the batch of a bad step is kept.
    """

    def __init__(self, model: nn.Module, *, are_skipped: bool, epoch: int, folder: Path) -> None:
        self._model, self._are_skipped = model, are_skipped
        self._epoch, self._folder = epoch, folder

    def over(self, step: Callable[[int, Any], tuple[Any, Any, Any]]) -> Callable[[int, Any], tuple[Any, Any, Any]]:
        """Return a step whose loss is checked before it is walked back; no scale is to blame for that."""

        def checked(iteration: int, data_dict: Any) -> tuple[Any, Any, Any]:
            loss, *dicts = step(iteration, data_dict)
            if isinstance(loss, torch.Tensor) and not torch.isfinite(loss.detach()).all():
                raise self._failure(iteration, data_dict, f"the loss is {loss.detach().float().mean().item()}")
            return loss, *dicts

        return checked

    def around(self, iterate: Callable[[int, Any], None]) -> Callable[[int, Any], None]:
        """Return an iteration that keeps its batch where autograd's anomaly detection stops its backward pass."""

        def kept(iteration: int, data_dict: Any) -> None:
            try:
                iterate(iteration, data_dict)
            except RuntimeError as error:
                if _OF_ANOMALY not in str(error):
                    raise
                what = (
                    f"{str(error).rstrip('.')} in the backward pass; torch's warning above names the line of the step"
                )
                raise self._failure(iteration, data_dict, f"{what} that it belongs to") from error

        return kept

    def check_gradients(self, _epoch: int, iteration: int, data_dict: Any, *_dicts: Any) -> None:
        """Look at the norm of the gradients, and for names only when it is not finite.

        Raises:
            NonFiniteError: naming the parameters and the file with the batch.
        """
        gradients = [local_part(each.grad) for each in self._model.parameters() if each.grad is not None]
        if self._are_skipped or not gradients or torch.nn.utils.get_total_norm(gradients).isfinite():
            return
        if names := non_finite_gradients(self._model):  # the norm of large numbers may be infinite
            raise self._failure(iteration, data_dict, f"the gradient is not finite in {shortened(names, _MAX_NAMES)}")

    def _failure(self, iteration: int, data_dict: Any, what: str) -> NonFiniteError:
        """Keep the batch and return the error."""
        file = make_folder(self._folder) / f"batch-epoch{self._epoch}-iter{iteration}.pt"
        with atomic_write(file) as stream:
            torch.save(to_cpu(data_dict), stream)
        where = f"epoch {self._epoch}, iteration {iteration}"
        return NonFiniteError(f"{where}: {what}. The batch is saved in '{file}'")
