"""What trainers and testers share: a model, a log, hooks, numbers for the writers."""

import inspect
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from vision3d_engine.core.errors import RegistrationError, listed
from vision3d_engine.core.tree import describe
from vision3d_engine.data.fixed_batches import readers_of
from vision3d_engine.data.loader_cache import LoaderCache
from vision3d_engine.data.remaining import RemainingBatches
from vision3d_engine.distributed.parallel.base import Parallel
from vision3d_engine.distributed.parallel.wrapping import unwrap_model
from vision3d_engine.loop.context import Reading, counter, setting
from vision3d_engine.loop.hooks import Hooks
from vision3d_engine.run.named_models import NamedModels
from vision3d_engine.run.outlets import Outlets
from vision3d_engine.run.session import Session
from vision3d_engine.run.tryout import TryOut


class Engine(Outlets):
    """Base of all trainers and testers.

    ``cfg``, ``device``, ``output_dir`` and ``log_dir`` are there for scripts, which may overwrite them: the engine
    itself reads its `Session`.
    """

    def __init__(self, session: Session, cfg: Any, hooks: Sequence[str], base: type, parallel: Parallel) -> None:
        self._session = session
        self._hooks = Hooks(self, base, hooks)
        super().__init__(session.pass_context(parallel, self._hooks))
        if session.settings.trainer.fast_dev_run:
            self._hooks.add_last(TryOut(session.folders, session.logger.log))
        self._progress = self._context.progress
        world, fixed = session.world, readers_of(session.settings.trainer.overfit, self._context.data_seed)
        readers = {"test": RemainingBatches, **fixed}
        self._loaders = LoaderCache(world.device, world.rank, world.size, session.logger.log, readers)
        self.model: Any = None
        self.cfg = cfg
        self.device = session.world.device
        self.output_dir = str(session.folders.output)
        self.log_dir = str(session.folders.logs)

    @property
    def args(self) -> Namespace:
        """The command line: the engine's flags, with the settings in force, and the script's own."""
        return self._session.arguments.namespace

    log_steps = setting("log_steps", "Iterations from one log line to the next.")
    iteration = counter("iteration", "The batch of the running pass, from 1.")
    endpoints = Reading(
        lambda own: own._context.endpoints,  # noqa: SLF001
        "Intermediate tensors of the step at hand, by name; what `get_context_manager` returns while it runs.",
    )

    def register_model(self, model: nn.Module, name: str | None = None) -> Any:
        """Move a model to the device and return it for use; with several processes a trainer's shares its gradients.

        With ``trainer.compile`` it is compiled in place (``torch.nn.Module.compile``), so names of weights stay.

        Args:
            model: the model.
            name: of several, such as ``"generator"``: each is registered under its own. ``self.model`` is then a
                ``torch.nn.ModuleDict`` of all of them, and their weights are in every checkpoint as
                ``generator.*`` and so on.

        Raises:
            RegistrationError: when it is not a ``torch.nn.Module``, when it is a second one without a name, and for a
                name that is taken or cannot be one.
        """
        if not isinstance(model, nn.Module):
            message = f"register_model got {describe(model)}; it must be a torch.nn.Module"
            raise RegistrationError(message)
        named = None if name is None else self._named_models(model)
        if named is None:
            refuse_second("model", self.model, model)
        if (mode := self._context.settings.compile) is not None:
            compile_in_place(model, mode, self.log)
        kind, count = type(unwrap_model(model)).__name__, sum(map(_size_of, model.parameters()))
        own = self._context.parallel.wrap(model)
        self.model = own if named is None else named.add(str(name), own)
        self.log(f"model{f' {name!r}' if name else ''}: {kind}, {count:,} parameters")
        self.log(f"model description:\n{model}", level="DEBUG")
        return own

    def _named_models(self, model: nn.Module) -> NamedModels:
        """Return what holds models by name; refuse one more beside a model without a name."""
        named = NamedModels() if self.model is None else self.model
        if not isinstance(named, NamedModels):
            refuse_second("model", self.model, model)
        return named

    def add_hook(self, hook: Any) -> Any:
        """Add a `Hook`, or any object with methods named like moments of the run, and return it."""
        self._hooks.add(hook)
        return hook

    def breakpoint(self, rank: int = 0) -> None:
        """Open python's debugger here on one process; the others wait until it leaves its first prompt, however long.

        To be called by all processes, in a step or a hook. Where standard input is no terminal it is passed over.
        """
        frame = inspect.currentframe()
        self._session.debugger.open_on(rank, frame and frame.f_back)

    def _let_go(self) -> None:
        """Drop the last pass and what reads its loader, at the end of a run."""
        self._pass = None
        self._loaders.clear()

    def _require(self, **parts: Any) -> None:
        """Refuse to run without a registered part."""
        for name, part in parts.items():
            if part is None:
                message = f"{type(self).__name__} has no {name.replace('_', ' ')}; call register_{_register_name(name)}"
                raise RegistrationError(message + " before run()")


def _size_of(parameter: nn.Parameter) -> int:
    """Return the numbers of a parameter; 0 of one that a lazy module makes at its first batch."""
    return 0 if is_lazy(parameter) else parameter.numel()


def refuse_second(what: str, registered: Any, part: Any) -> None:
    """Refuse a second part of a kind without a name.

    Raises:
        RegistrationError: saying what to do about it.
    """
    if registered is not None:
        first, second = type(registered).__name__, type(part).__name__
        message = f"register_{what} got a second {what}, {second}, after {first}: give each its name, as in "
        message += f"register_{what}(..., name='generator'). To replace the first one, set self.{what} = None before"
        raise RegistrationError(message)


def with_methods(caller: str, part: Any, names: tuple[str, ...]) -> Any:
    """Return the part if it has all that the engine uses of it.

    Raises:
        RegistrationError: saying what it lacks.
    """
    missing = [name for name in names if not hasattr(part, name)]
    if missing:
        message = f"{caller} got {describe(part)}, which has no {listed(missing)}"
        raise RegistrationError(message)
    return part


def compile_in_place(model: nn.Module, mode: str, log: Callable[..., None]) -> None:
    """Let torch compile a model when it is first called, and say where it would not."""
    model.compile(mode=mode)
    if type(model).__module__.startswith("torch.nn."):
        name = type(model).__name__
        log(f"torch does not compile its own class {name} by itself: put it into an nn.Module of yours", "WARNING")


def _register_name(part: str) -> str:
    return "loader" if part.endswith("_loader") else part


def refuse_hidden_methods(owner: Any, names: Iterable[str]) -> None:
    """Refuse attributes of a script that hide what the engine calls.

    Raises:
        RegistrationError: naming the attribute.
    """
    for name in names:
        if not callable(value := getattr(owner, name)):
            message = f"self.{name} is {describe(value)}, which hides the method {name} that the engine calls: choose "
            raise RegistrationError(message + "another name for it")
