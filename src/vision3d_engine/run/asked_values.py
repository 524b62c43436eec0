"""What a script asks for and the checkpoint that it goes on from has otherwise: rates, classes, length of an epoch."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vision3d_engine.core.errors import CheckpointError, listed
from vision3d_engine.core.named_parts import class_name
from vision3d_engine.optim.lr_scaling import change_learning_rates
from vision3d_engine.optim.scheduler import schedule_name

if TYPE_CHECKING:
    from vision3d_engine.core.settings import TrainerSettings

_CLASSES = ("optimizer", "schedule", "num_iters_per_epoch", "precision", "curve_axis")
_RATES = ("lr", "weight_decay")


class AskedValues:
    """Compares what the script has built with what a checkpoint's run has had, and lets one of them be in force.

    Args:
        trainer: whose optimizer and schedule are looked at, as they are at the time.
        settings: say what is in force (``on_resume``).
    """

    def __init__(self, trainer: Any, settings: "TrainerSettings") -> None:
        self._trainer, self._settings = trainer, settings
        self._noted: Any = None
        self._script: dict[str, list[float | None]] = {}
        self._base: dict[str, list[float | None]] = {}

    def note(self) -> None:
        """Note rates and weight decay of an optimizer, once, before they are loaded or a schedule moves them."""
        if self._noted is not self._trainer.optimizer:
            self._noted = self._trainer.optimizer
            self._script = self._base = _rates(self._noted.param_groups)

    def state(self) -> dict[str, Any]:
        """Return what is in force, for the checkpoint."""
        return {**self._base, **self._classes()}

    def _classes(self) -> dict[str, Any]:
        trainer = self._trainer
        has_length = hasattr(type(trainer), "num_iters_per_epoch")
        length = self._settings.num_iters_per_epoch if has_length else None
        schedule = None if trainer.scheduler is None else schedule_name(trainer.scheduler)
        settings = self._settings
        values = (class_name(trainer.optimizer), schedule, length, settings.precision, settings.curve_axis)
        return dict(zip(_CLASSES, values, strict=True))

    def check(self, state: Mapping[str, Any], source: str) -> None:
        """Refuse a checkpoint whose numbers cannot be continued.

        Raises:
            CheckpointError: for an optimizer that needs what another class has not saved.
        """
        was, own = (state.get("asked") or {}).get("optimizer"), self._classes()["optimizer"]
        known = {key for group in _groups(state) for key in group}
        missing = getattr(self._trainer.optimizer, "defaults", {}).keys() - known
        if was not in (None, own) and missing:
            message = (
                f"'{source}' was written with the optimizer {was}, whose state lacks what the script's {own} needs "
                f"({listed(sorted(missing))}): register {was}, or start from the weights alone with --checkpoint "
                "instead of --resume"
            )
            raise CheckpointError(message)

    @property
    def counts_iterations(self) -> bool:
        """Whether epochs have a number of iterations of the script's."""
        return self._classes()["num_iters_per_epoch"] is not None

    def keeps_length(self, state: Mapping[str, Any]) -> bool:
        """Tell whether epochs have a number of iterations that a checkpoint's run has had too."""
        length = self._classes()["num_iters_per_epoch"]
        return length is not None and length == (state.get("asked") or {}).get("num_iters_per_epoch", length)

    def check_length(self, trained: int, source: str) -> None:
        """Refuse an open epoch that is longer already than those of the script.

        Raises:
            CheckpointError: naming both numbers.
        """
        length = self._classes()["num_iters_per_epoch"]
        if length is not None and trained > length:
            message = (
                f"'{source}' stands at iteration {trained} of an epoch, but trainer.num_iters_per_epoch is {length}; "
                f"expected at least {trained}: give the run what it had, or resume from a checkpoint between two epochs"
            )
            raise CheckpointError(message)

    def follow(self, state: Mapping[str, Any], source: str) -> str | None:
        """Put in force what the settings say, once the parts of a checkpoint are loaded; return what to say of it."""
        if "optimizer" not in state or self._noted is None:
            return None
        saved = _saved(state)
        rates = [line for name in _RATES for line in _changes(name, saved.get(name), self._script[name])]
        classes = [_change(name, saved[name], now) for name, now in self._classes().items() if name in saved]
        keeps = self._settings.on_resume == "keep"
        self._base = {name: saved.get(name, self._script[name]) for name in _RATES} if keeps else self._script
        self.restore_rates(state)
        return _warning(source, rates, list(filter(None, classes)), keeps)

    def restore_rates(self, state: Mapping[str, Any]) -> None:
        """Take the script's rates and weight decay instead of those just loaded, where the settings say so."""
        if self._settings.on_resume == "keep" or "optimizer" not in state or self._noted is None:
            return
        trainer, (rate, decay) = self._trainer, _RATES
        change_learning_rates(trainer.optimizer, trainer.scheduler, _saved(state).get(rate, []), self._script[rate])
        for group, value in zip(trainer.optimizer.param_groups, self._script[decay], strict=False):
            group.update({} if value is None else {"weight_decay": value})


def _rates(groups: Any) -> dict[str, list[float | None]]:
    """Return the rates on which a schedule is based, and the weight decay, of each parameter group."""
    rates = [group.get("initial_lr", group.get("lr")) for group in groups]
    decays = [group.get("weight_decay") for group in groups]
    values = ([None if each is None else float(each) for each in kind] for kind in (rates, decays))
    return dict(zip(_RATES, values, strict=True))


def _groups(state: Mapping[str, Any]) -> Any:
    """Return the parameter groups of a checkpoint, if its optimizer saves them as torch's do."""
    optimizer = state.get("optimizer")
    if not isinstance(optimizer, Mapping):
        return ()
    if "param_groups" in optimizer:
        return optimizer["param_groups"]
    parts = [part for part in optimizer.values() if isinstance(part, Mapping)]  # several by name
    return [group for part in parts for group in part.get("param_groups", ())]


def _saved(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint's run has had; one of an older engine knows the rates alone."""
    return state.get("asked") or _rates(_groups(state))


def _changes(name: str, saved: Any, own: list[float | None]) -> Iterator[str]:
    """Say each change of a value in the parameter groups once."""
    pairs = dict.fromkeys(zip(saved or [], own, strict=False))
    yield from filter(None, (_change(name, was, now) for was, now in pairs))


def _change(name: str, was: Any, now: Any) -> str | None:
    was, now = (f"{each:g}" if isinstance(each, float) else "none" if each is None else each for each in (was, now))
    return None if was == now else f"{name} {was} in the checkpoint, {now} in the script"


def _warning(source: str, rates: list[str], classes: list[str], keeps: bool) -> str | None:
    """Return one warning of all changes, or None."""
    if not rates and not classes:
        return None
    kept, taken = (rates, classes) if keeps else ([], rates + classes)
    sides = (("the checkpoint's values", kept), ("the script's", taken))
    parts = [f"in force are {whose}: {'; '.join(what)}" for whose, what in sides if what]
    fix = ". trainer.on_resume: config takes learning rate and weight decay of the script" if kept else ""
    return f"the script differs from the run that it continues ('{source}'); {', and '.join(parts)}{fix}"
