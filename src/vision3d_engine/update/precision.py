"""In which numbers a step is computed: torch's autocast, and the loss scaling that 16-bit floats need."""

import contextlib
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch

from vision3d_engine.core.errors import RegistrationError

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Full precision: nothing is cast, nothing is scaled. The null object of the others.

    Attributes:
        is_scaled: whether an update may be skipped, which torch decides when gradients are brought back from a scale.
    """

    is_scaled = False

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context in which a step computes."""
        return contextlib.nullcontext()

    def casting(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Return a step that computes so."""
        return step

    def full(self) -> AbstractContextManager[Any]:
        """Return a context without autocast, for a backward pass in the midst of a step."""
        return contextlib.nullcontext()

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the loss that is walked back."""
        return loss

    def unscale(self, optimizer: Any) -> None:
        """Bring the gradients of an optimizer back to the unit of the loss itself."""

    def step(self, optimizer: Any) -> None:
        """Let an optimizer make its step, unless its gradients are not finite because of the scale."""
        optimizer.step()

    def check_step(self, optimizer: Any) -> None:
        """Refuse an ``optimizer_step`` of the script's own that has not let `step` decide."""

    def count(self, norm: torch.Tensor) -> None:
        """Note the norm of the gradients of an update: whether it is skipped."""

    def end_update(self) -> None:
        """Act when all optimizers of an update have made their steps."""

    def begin(self) -> None:
        """Forget an update that an exception has left unfinished; at the start of a pass."""

    def probe(self) -> dict[str, torch.Tensor]:
        """Return numbers on the device that a log line shows."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it over."""


class Autocast(Precision):
    """Operations that torch knows to be safe run in 16 bits; weights and gradients stay as they are.

    See https://docs.pytorch.org/docs/stable/amp.html.

    Args:
        dtype: the type of these operations.
        device: where the step runs.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context in which a step computes."""
        return torch.autocast(self._device.type, dtype=self._dtype)

    def casting(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Return a step that computes so."""
        return torch.autocast(self._device.type, dtype=self._dtype)(step)

    def full(self) -> AbstractContextManager[Any]:
        """Return a context without autocast, as torch advises for backward passes."""
        return torch.autocast(self._device.type, enabled=False)


class Guarded(Precision):
    """Lets an optimizer make its step only where its gradients are finite, by torch's ``GradScaler``.

    Optimizers with fused kernels skip a step on the device; for others ``GradScaler.step`` waits for it once an update.
    Here the scale is 1 and stays so.

    Args:
        device: where the step runs.
    """

    is_scaled = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._scaler = self._new_scaler()
        # A schedule goes on when an update is skipped, of which torch would say that it comes too early.
        warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler\.step\(\)` before", UserWarning)
        self._skipped = torch.zeros((), device=device)
        self._is_bad: torch.Tensor | None = None
        self._unscaled: set[int] = set()
        self._stepped: set[int] = set()

    def _new_scaler(self) -> torch.amp.GradScaler:
        scaler = torch.amp.GradScaler(self._device.type, init_scale=1.0)
        scaler.scale(torch.ones((), device=self._device))  # puts its scale on the device
        return scaler

    def unscale(self, optimizer: Any) -> None:
        """Divide the gradients of an optimizer by the scale, and note on the device whether all are finite."""
        if any(each.grad is not None for group in optimizer.param_groups for each in group["params"]):
            self._scaler.unscale_(optimizer)
            self._unscaled.add(id(optimizer))

    def step(self, optimizer: Any) -> None:
        """Let an optimizer make its step where its gradients are finite."""
        if id(optimizer) in self._unscaled:
            self._scaler.step(optimizer)
        else:
            optimizer.step()
        self._stepped.add(id(optimizer))

    def check_step(self, optimizer: Any) -> None:
        """Refuse an ``optimizer_step`` of the script's own that has not let `step` decide.

        Raises:
            RegistrationError: since such a step may have filled the weights with NaN.
        """
        if id(optimizer) not in self._stepped:
            message = (
                "optimizer_step is overridden and makes the step itself, so that an update whose gradients are not "
                "finite would not be skipped (trainer.precision: fp16, trainer.nonfinite: skip): call "
                "super().optimizer_step() in it, or use trainer.precision: bf16 and trainer.nonfinite: stop"
            )
            raise RegistrationError(message)

    def count(self, norm: torch.Tensor) -> None:
        """Count an update as skipped, once, when the gradients of any optimizer have a norm that is not finite."""
        is_bad = norm.isfinite().logical_not()
        self._is_bad = is_bad if self._is_bad is None else self._is_bad | is_bad

    def end_update(self) -> None:
        """Begin another update."""
        if self._is_bad is not None:
            self._skipped += self._is_bad
            self._is_bad = None
        if self._unscaled:
            self._follow()
        self._unscaled.clear()
        self._stepped.clear()

    def _follow(self) -> None:
        """Let the scale follow what became of the update; here it stays as it is."""
        self._scaler.update(1.0)

    def begin(self) -> None:
        """Go on with the scale alone where an update was left unfinished."""
        if self._unscaled:
            scale, self._scaler = self._scaler.state_dict(), self._new_scaler()
            self._scaler.load_state_dict(scale)
        self._unscaled.clear()
        self._stepped.clear()

    def probe(self) -> dict[str, torch.Tensor]:
        """Return how many updates were skipped since the run began."""
        return {"skipped_updates": self._skipped}

    def state_dict(self) -> dict[str, Any]:
        """Return the scale, and what was skipped; waits for the device."""
        return {"scaler": self._scaler.state_dict(), "skipped": int(self._skipped)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with a scale; a checkpoint without one starts with torch's."""
        if state:
            self._scaler.load_state_dict(state["scaler"])
            self._skipped.fill_(state["skipped"])


class GuardedAutocast(Guarded, Autocast):
    """Autocast whose updates are skipped where gradients are not finite; losses are not scaled.

    Args:
        dtype: the type of the operations.
        device: where the step runs.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        Guarded.__init__(self, device)
        Autocast.__init__(self, dtype, device)


class ScaledAutocast(GuardedAutocast):
    """Autocast to floats of a small range: losses are scaled by torch's ``GradScaler`` (Micikevicius et al. 2018)."""

    def _new_scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self._device.type)

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the loss times the scale."""
        return self._scaler.scale(loss)

    def _follow(self) -> None:
        self._scaler.update()


def choose_precision(name: str, device: torch.device, skips: bool = False) -> Precision:
    """Return what the setting ``trainer.precision`` asks for.

    Args:
        name: the setting.
        device: where steps run.
        skips: whether updates are skipped whose gradients are not finite, also where losses are not scaled.
    """
    if name == "fp32":
        return Guarded(device) if skips else Precision()
    if name == "fp16":
        return ScaledAutocast(_DTYPES[name], device)
    return (GuardedAutocast if skips else Autocast)(_DTYPES[name], device)
