"""What one process cannot replay of a step of several: numbers that follow from what the others have sent it."""

from typing import Any

from torch import nn

from vision3d_engine.core.errors import text_of
from vision3d_engine.replay.plan import Plan

_LACKS_GROUP = "process group has not been initialized"
_EXCHANGES = (
    "replay got one process for a step whose numbers follow from several: {}. Expected is the step without exchanges "
    "of its own, or a replay by the same number of processes: the script and --step, without --rank and --processes"
)


def refuse_exchange(plan: Plan, model: nn.Module) -> None:
    """Refuse a model whose statistics are those of all processes."""
    if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        plan.refuse(_EXCHANGES.format("its model has SyncBatchNorm"))


def refusal_of(error: Exception) -> dict[str, Any]:
    """Return what to answer for an error in a step: a refusal, where it exchanges something by itself."""
    said = text_of(error)
    return {"refused": _EXCHANGES.format(f"it says '{said}'")} if _LACKS_GROUP in said else {}
