"""What the time of an epoch goes into, said in a line, with what helps where one part stands out."""

from collections.abc import Mapping, Sequence
from typing import Any

from vision3d_engine.core.errors import shortened
from vision3d_engine.logs.log_line import time_line
from vision3d_engine.loop.context import PassContext
from vision3d_engine.loop.hooks import STEP_HOOKS
from vision3d_engine.metrics.epoch_times import EpochShares

_SLOW_S = 0.5
# From which share of an epoch on something is said. Waits for data are told at log lines (`data.loader_hints`).
_LARGE = {
    "forward": 0.7,
    "backward": 0.8,
    "optimizer": 0.3,
    "hooks": 0.2,
    "captures": 0.2,
    "validation": 0.3,
    "checkpoints": 0.2,
}
_WHAT = {
    "forward": "the forward passes of training",
    "backward": "the backward passes",
    "optimizer": "the updates of the optimizer",
    "hooks": "the hooks of the script",
    "captures": "what self.capture computes, draws and writes",
    "validation": "validations",
    "checkpoints": "waiting for checkpoints to be copied or written",
}


def tell_times(context: PassContext, trainer: Any) -> None:
    """Say what the time since the last call went into, if steps were made."""
    epoch = context.times.take()
    if epoch is None:
        return
    trainer.log(time_line(epoch.seconds, epoch.shares, context.progress.epoch, trainer.max_epoch))
    context.hints.tell(bottleneck_hint(epoch, context.settings, context.captures.names))


def bottleneck_hint(epoch: EpochShares, settings: Any, captures: Sequence[str] = ()) -> str | None:
    """Return what takes most of an epoch and the setting that helps; None if nothing stands out.

    Args:
        epoch: what its time went into.
        settings: the settings ``trainer.*``.
        captures: what is captured, for the one who reads it.
    """
    large = {name: epoch.shares.get(name, 0) for name, share in _LARGE.items() if epoch.shares.get(name, 0) >= share}
    name = max(large, key=large.__getitem__, default="")
    if not name or large[name] * epoch.seconds < _SLOW_S or settings.fast_dev_run:
        return None
    helps = _of_hooks(epoch.hooks) if name == "hooks" else _advice(name, settings, captures)
    return f"{large[name]:.0%} of the epoch's {epoch.seconds:.1f}s went into {_WHAT[name]}: {helps}"


def _of_hooks(hooks: Mapping[str, float]) -> str:
    moment = max(hooks, key=hooks.__getitem__, default="all of them")
    helps = {
        "after_log": "do less in it, or let trainer.log_steps be larger",
        **dict.fromkeys(STEP_HOOKS, "do what need not happen in each step in after_log, or in every so many steps"),
    }
    return f"{moment} took most of it; {helps.get(moment, 'do less in it, or not in each epoch')}"


def _advice(name: str, settings: Any, captures: Sequence[str]) -> str:
    if name == "optimizer":
        return _of_optimizer(settings)
    if name == "checkpoints" and not settings.async_save:
        return "set trainer.async_save to true, so that a thread writes them"
    return {
        "forward": "--profile 10:20 shows which modules cost most; trainer.compile or trainer.precision may help",
        "backward": "--profile 10:20 shows which modules cost most; trainer.compile or trainer.precision may help",
        "captures": f"let every= be larger, or leave out histograms and clouds, for {shortened(captures)}",
        "validation": "validate less often by trainer.val_every, such as '5 epochs', or on fewer samples",
        "checkpoints": "save less often by trainer.save_every, such as '30 min'",
    }[name]


def _of_optimizer(settings: Any) -> str:
    if not settings.fused_optimizer:
        return "set trainer.fused_optimizer to true"
    if settings.ema_decay is not None and settings.ema_every == 1:
        return "let the average of the weights follow less often by trainer.ema_every, such as 10"
    return "make fewer updates of larger batches, or by trainer.grad_acc_steps"
