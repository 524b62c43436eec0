"""What the time of an epoch goes into, said in a line, with what helps where one part stands out."""

from typing import Any

from vision3d_engine.logs.log_line import time_line
from vision3d_engine.loop.context import PassContext
from vision3d_engine.metrics.epoch_times import EpochShares

_SLOW_S = 0.5
# From which share of an epoch on something is said. Waits for data are told at log lines (`data.loader_hints`).
_LARGE = {"forward": 0.7, "backward": 0.8, "optimizer": 0.3, "hooks": 0.2, "validation": 0.3, "checkpoints": 0.2}
_WHAT = {
    "forward": "the forward passes of training",
    "backward": "the backward passes",
    "optimizer": "the updates of the optimizer",
    "hooks": "the hooks of the script",
    "validation": "validations",
    "checkpoints": "waiting for checkpoints to be copied or written",
}


def tell_times(context: PassContext, trainer: Any) -> None:
    """Say what the time since the last call went into, if steps were made."""
    epoch = context.times.take()
    if epoch is None:
        return
    trainer.log(time_line(epoch.seconds, epoch.shares, context.progress.epoch, trainer.max_epoch))
    context.hints.tell(bottleneck_hint(epoch, context.settings))


def bottleneck_hint(epoch: EpochShares, settings: Any) -> str | None:
    """Return what takes most of an epoch and the setting that helps; None if nothing stands out.

    Args:
        epoch: what its time went into.
        settings: the settings ``trainer.*``.
    """
    large = {name: epoch.shares.get(name, 0) for name, share in _LARGE.items() if epoch.shares.get(name, 0) >= share}
    name = max(large, key=large.__getitem__, default="")
    if not name or large[name] * epoch.seconds < _SLOW_S or settings.fast_dev_run:
        return None
    return f"{large[name]:.0%} of the epoch's {epoch.seconds:.1f}s went into {_WHAT[name]}: {_advice(name, settings)}"


def _advice(name: str, settings: Any) -> str:
    if name == "optimizer":
        return _of_optimizer(settings)
    if name == "checkpoints" and not settings.async_save:
        return "set trainer.async_save to true, so that a thread writes them"
    return {
        "forward": "--profile 10:20 shows which modules cost most; trainer.compile or trainer.precision may help",
        "backward": "--profile 10:20 shows which modules cost most; trainer.compile or trainer.precision may help",
        "hooks": "do what need not happen in each step in after_log, or let trainer.log_steps be larger",
        "validation": "validate less often by trainer.val_every, such as '5 epochs', or on fewer samples",
        "checkpoints": "save less often by trainer.save_every, such as '30 min'",
    }[name]


def _of_optimizer(settings: Any) -> str:
    if not settings.fused_optimizer:
        return "set trainer.fused_optimizer to true"
    if settings.ema_decay is not None and settings.ema_every == 1:
        return "let the average of the weights follow less often by trainer.ema_every, such as 10"
    return "make fewer updates of larger batches, or by trainer.grad_acc_steps"
