"""The exponential moving average of a model's weights (EMA): it follows the updates, is validated, and is saved."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vision3d_engine.checkpoint.loading import model_state
from vision3d_engine.core.errors import RegistrationError, shortened
from vision3d_engine.distributed.parallel.base import Parallel
from vision3d_engine.distributed.parallel.shards import local_part
from vision3d_engine.distributed.parallel.wrapping import unwrap_model


class NoAverage:
    """Keeps none: what is trained is what is validated and saved."""

    def follower(self) -> Callable[[], None] | None:
        """Return what follows an update that was made, or None; to be called at the start of each pass."""
        return None

    def in_model(self) -> AbstractContextManager[None]:
        """Return a context in which the model holds the average; to be entered by all processes, within itself too."""
        return nullcontext()

    def out_of_model(self) -> AbstractContextManager[None]:
        """Return a context in which the model holds what is trained, also within `in_model`."""
        return nullcontext()

    def states(self, model: nn.Module) -> dict[str, Any]:
        """Return what a file holds of a model: what is validated under ``model``, and what is trained beside it."""
        return {"model": model_state(model)}

    def replacing_weights(self) -> AbstractContextManager[None]:
        """Return a context in which weights are put into the model: an average of those of before ends with it."""
        return nullcontext()

    def restore(self, state: Mapping[str, Any], source: str) -> str | None:
        """Go on with the average of a checkpoint; return what there is to say. Within `out_of_model`.

        Args:
            state: the checkpoint, whose ``model`` has just been loaded into the model.
            source: its name.
        """
        if "raw_model" not in state:
            return None
        return (
            f"'{source}' holds an average of the weights, but trainer.ema_decay is off: validation and files have "
            "the trained weights from now on, and the average is left behind"
        )


class WeightAverage(NoAverage):
    """Averages weights by the formula, and the function, of ``torch.optim.swa_utils``.

    The first average is the weights themselves, the following ones are ``d * average + (1 - d) * weights``. One tensor
    a parameter is held (under fsdp2 this process's shard), in place of the copy of a module that ``AveragedModel``
    makes. Parameters outside the model are not averaged, and what is neither floating nor complex is the model's own.

    To be in the model is to be exchanged with what is trained, in place, to the same bits and back: the validation
    runs the user's own module. A file holds both, and says how many updates the average has followed.

    Args:
        trainer: whose model is averaged, as it is at the time.
        settings: ``trainer.ema_*``.
        parallel: how the processes share the model.
    """

    def __init__(self, trainer: Any, settings: Any, parallel: Parallel) -> None:
        self._trainer, self._settings, self._parallel = trainer, settings, parallel
        self._blend = get_ema_multi_avg_fn(settings.ema_decay)
        self._updates = self._averages = 0
        self._held: dict[str, torch.Tensor] = {}
        self._groups: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = []
        self._is_in_model = False

    # ------------------------------------------------------------------------------------------- updates

    def follower(self) -> Callable[[], None] | None:
        """Return what follows an update that was made; see `NoAverage.follower`."""
        self._bind()
        return self._follow

    def _follow(self) -> None:
        """Take an update into the average, if it is one of those; nothing waits for the device."""
        self._updates += 1
        if self._updates % self._settings.ema_every:
            return
        if not self._averages:
            self._take_over()
        else:
            self._average()
        self._averages += 1

    def _average(self) -> None:
        if self._settings.ema_buffers:  # modules may exchange their buffers at any time
            self._bind()
        blend = self._blend_of(self._averages)
        for held, weights in self._groups:
            blend(held, weights, self._averages)
            if self._settings.ema_buffers:
                _take_infinite(held, weights)

    def _blend_of(self, averages: int) -> Callable[..., None]:
        """Return what blends lists of tensors; the warm-up lets a young average follow faster."""
        warm = (1 + averages) / (10 + averages)
        is_warm = not self._settings.ema_warmup or warm >= self._settings.ema_decay
        return self._blend if is_warm else get_ema_multi_avg_fn(warm)

    def _take_over(self) -> None:
        """Let the average be what the model holds."""
        self._held = {name: each.detach().clone() for name, each in self._find().items()}
        self._bind()

    def _find(self) -> dict[str, torch.Tensor]:
        """Return what is averaged by name, as the model holds it now."""
        model = unwrap_model(self._trainer.model)
        self._parallel.release(model)
        named = chain(model.named_parameters(), model.named_buffers() if self._settings.ema_buffers else ())
        return {name: each for name, each in named if each.is_floating_point() or each.is_complex()}

    def _bind(self) -> None:
        """Find the model's tensors again, which a hook may have exchanged, and pair them with the average's.

        Raises:
            RegistrationError: when they are others than those that are averaged.
        """
        found = self._find() if self._held else {}
        _refuse_change(self._held, found)
        groups: dict[Any, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        for name, tensor in found.items():
            held, weights = groups.setdefault((tensor.device, tensor.dtype), ([], []))
            held.append(local_part(self._held[name]))
            weights.append(local_part(tensor))
        self._groups = list(groups.values())

    # ------------------------------------------------------------------------------------------- in the model

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Let the model hold the average while a block runs; see `NoAverage.in_model`."""
        if self._settings.ema_buffers and not self._is_in_model:
            with self._parallel.local_forward(self._trainer.model, 0):
                pass  # trained buffers become the main process's, as in a validation without an average
        with self._with_average(True):
            yield

    def out_of_model(self) -> AbstractContextManager[None]:
        """Return a context in which the model holds what is trained; see `NoAverage.out_of_model`."""
        return self._with_average(False)

    @contextmanager
    def _with_average(self, is_in_model: bool) -> Iterator[None]:
        was_in_model = self._is_in_model
        self._place(is_in_model)
        try:
            yield
        finally:
            self._place(was_in_model)

    def _place(self, is_in_model: bool) -> None:
        """Exchange average and model, if they are not where they shall be."""
        if is_in_model == self._is_in_model:
            return
        if is_in_model:
            self._bind()
        with torch.no_grad():
            for held, weights in self._groups:
                for pair in zip(held, weights, strict=True):
                    _exchange(*pair)
        self._parallel.release(self._trainer.model)
        self._is_in_model = is_in_model

    # ------------------------------------------------------------------------------------------- files

    def states(self, model: nn.Module) -> dict[str, Any]:
        """Return the model's state with the average and, beside it, with what is trained; nothing is copied."""
        there = model_state(model)
        held = self._held_state(model) if self._held else there
        average, raw = (there, held) if self._is_in_model else (held, there)
        return {"model": average, "raw_model": raw, "ema": {"updates": self._updates, "averages": self._averages}}

    def _held_state(self, model: nn.Module) -> dict[str, Any]:
        """Return the state that a model would have if it held what is held here, by its own way of handing it out."""
        self._bind()
        named = {f"model.{name}": tensor for name, tensor in self._held.items()}
        return functional_call(_State(unwrap_model(model)), named, ())

    @contextmanager
    def replacing_weights(self) -> Iterator[None]:
        """Begin anew with what a block puts into the model; see `NoAverage.replacing_weights`."""
        with self.out_of_model():
            yield
            if self._averages:
                self._trainer.log("the average of the weights (trainer.ema_decay) begins anew with those just loaded")
            self._restart()

    def _restart(self) -> None:
        """Let the next update begin an average."""
        self._updates = self._averages = 0
        self._held, self._groups = {}, []

    def restore(self, state: Mapping[str, Any], source: str) -> str | None:
        """Go on with the average of a checkpoint; see `NoAverage.restore`."""
        self._restart()
        if "raw_model" not in state:
            return f"'{source}' holds no average of the weights: trainer.ema_decay begins one with its weights"
        self._updates, self._averages = (int(state["ema"][name]) for name in ("updates", "averages"))
        if self._averages:
            self._take_over()
        return None


class _State(nn.Module):
    """A module whose forward pass returns the state of another one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self) -> dict[str, Any]:
        return model_state(self.model)


def choose_average(trainer: Any, settings: Any, parallel: Parallel) -> NoAverage:
    """Return the average of the weights that the settings ask for."""
    return NoAverage() if settings.ema_decay is None else WeightAverage(trainer, settings, parallel)


def _exchange(one: torch.Tensor, other: torch.Tensor) -> None:
    """Exchange the contents of two tensors, bit by bit."""
    kept = one.clone()
    one.copy_(other)
    other.copy_(kept)


@torch.no_grad()
def _take_infinite(held: Iterable[torch.Tensor], weights: Iterable[torch.Tensor]) -> None:
    """Take what has no mean as it is: infinity, which buffers hold on purpose (the mask of an attention)."""
    for average, weight in zip(held, weights, strict=True):
        average.copy_(torch.where(torch.isfinite(average), average, weight))


def _refuse_change(held: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> None:
    """Raise `RegistrationError` when a model has other tensors than those that are averaged."""
    names = {**held, **found}
    if changed := [name for name in names if _form(held.get(name)) != _form(found.get(name))]:
        forms = [f"'{name}' was {_form(held.get(name))} and is {_form(found.get(name))}" for name in changed]
        message = (
            f"the model has changed while its weights are averaged (trainer.ema_decay): {shortened(forms, 4)}. Change "
            "it before the first update, load a checkpoint or weights into the changed one, or leave ema_decay out"
        )
        raise RegistrationError(message)


def _form(tensor: torch.Tensor | None) -> str:
    return "not there" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"
