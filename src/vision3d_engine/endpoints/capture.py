"""What modules return, put into a store of endpoints without touching the model."""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from torch import nn

from vision3d_engine.core.errors import RegistrationError, did_you_mean, shortened
from vision3d_engine.core.tree import describe
from vision3d_engine.distributed.parallel.wrapping import unwrap_model
from vision3d_engine.endpoints.context_manager import ContextManager, is_recomputing

# What torch.compile and torch's checkpoint_wrapper put between a name and what is inside of it.
_WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module"}


class Capture:
    """Which modules are captured, and in which steps; what ``trainer.capture`` returns.

    Args:
        modules: a pattern for their names, or their type.
        every: captured are the training batches whose number since the start of the run is a multiple of it.
        histograms: whether histograms are written.
        clouds: name of the points that are written in the colours of their features; None for no clouds.
        channel: the feature that is shown; None for the principal components of all.

    Attributes:
        is_on: whether it has not been removed.

    Raises:
        RegistrationError: when one of them is of the wrong kind.
    """

    def __init__(
        self,
        modules: str | type[nn.Module],
        every: int,
        *,
        histograms: bool = False,
        clouds: str | None = None,
        channel: int | None = None,
    ) -> None:
        is_type = isinstance(modules, type) and issubclass(modules, nn.Module)
        if not (isinstance(modules, str) or is_type):
            message = f"capture got {describe(modules)}; it must be a pattern such as 'backbone.layers.*', or a type "
            raise RegistrationError(message + "of modules such as nn.BatchNorm1d")
        if not isinstance(every, int) or every < 1:
            message = f"capture got every={every!r}; it must be a number of training batches, 1 or more"
            raise RegistrationError(message)
        if channel is not None and (clouds is None or not isinstance(channel, int)):
            message = (
                f"capture got channel={channel!r} and clouds={clouds!r}; a channel is a whole number, shown on the "
            )
            raise RegistrationError(message + "points that clouds names, such as clouds='points'")
        self.every, self.histograms, self.clouds, self.channel = every, histograms, clouds, channel
        self.is_on = True
        self._modules = modules

    def __str__(self) -> str:
        own = self._modules if isinstance(self._modules, str) else self._modules.__name__
        return f"'{own}' (every={self.every})"

    def remove(self) -> None:
        """Capture no more."""
        self.is_on = False

    def is_due(self, step: int) -> bool:
        """Tell whether a training batch is captured, given its number since the start of the run."""
        return self.is_on and step % self.every == 0

    def modules_of(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return the modules of a model that are meant, by name."""
        return {name: module for name, module in named_modules(model).items() if self._is_meant(name, module)}

    def _is_meant(self, name: str, module: nn.Module) -> bool:
        if isinstance(self._modules, str):
            return fnmatchcase(name, self._modules)
        return isinstance(module, self._modules)

    def check(self, model: nn.Module) -> None:
        """Refuse what matches no module.

        Raises:
            RegistrationError: naming the nearest.
        """
        if self.modules_of(model):
            return
        named, own = named_modules(model), self._modules
        what, known = (f"'{own}'", list(named)) if isinstance(own, str) else (own.__name__, _types_of(named))
        hint = did_you_mean(what.strip("'"), known)
        message = f"capture({what}) matches no module of the model{hint} (it has: {shortened(known, 20)})"
        raise RegistrationError(message)


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a model by name, without the names of wrappers around them; not the model itself."""
    found = ((without_wrappers(name), module) for name, module in unwrap_model(model).named_modules())
    return {name: module for name, module in found if name}


def without_wrappers(name: str) -> str:
    """Return the name of a module or parameter without those of wrappers around modules."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _types_of(modules: Mapping[str, nn.Module]) -> list[str]:
    return sorted({type(module).__name__ for module in modules.values()})


@contextmanager
def outputs_into(store: ContextManager, modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Any]]:
    """Put what modules return in a block into a store, and yield it by name as it comes.

    A module that is called again has the names ``NAME``, ``NAME#2`` and so on. What other threads compute, such as
    those of ``nn.DataParallel``, is left out.
    """
    thread, calls, found = threading.get_ident(), Counter[str](), dict[str, Any]()

    def keep(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        if threading.get_ident() != thread or is_recomputing():
            return
        calls[name] += 1
        full_name = name if calls[name] == 1 else f"{name}#{calls[name]}"
        store.put(full_name, output)
        found[full_name] = output

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.enter_context(module.register_forward_hook(partial(keep, name)))
        yield found
