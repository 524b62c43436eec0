"""What one process cannot replay of a step of several: numbers that follow from what the others have sent it."""

from collections.abc import Callable
from typing import Any

from torch import nn

from vision3d_engine.core.errors import text_of
from vision3d_engine.replay.plan import Plan

_LACKS_GROUP = "process group has not been initialized"
_EXCHANGES = (
    "replay got one process for a step whose numbers follow from several: {}. Expected is the step without exchanges "
    "of its own, or a replay by the same number of processes: the script and --step, without --rank and --processes"
)


def refuse_exchange(plan: Plan, owner: Any) -> None:
    """Refuse a trainer whose model has statistics over all processes, by itself or by a setting."""
    is_asked = owner._context.settings.sync_batchnorm  # noqa: SLF001  the engine's own
    if is_asked or any(isinstance(module, nn.SyncBatchNorm) for module in owner.model.modules()):
        plan.refuse(_EXCHANGES.format("its model has SyncBatchNorm"))


def refusing_exchanges(plan: Plan, step: Callable[..., Any]) -> Callable[..., Any]:
    """Return a step that is refused where it exchanges something by itself, for which there is no process group."""

    def run(*args: Any) -> Any:
        try:
            return step(*args)
        except Exception as error:
            if _LACKS_GROUP in text_of(error):
                plan.answer.add(refused=_EXCHANGES.format(f"it says '{text_of(error)}'"))
            raise

    return run
