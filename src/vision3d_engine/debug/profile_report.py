"""The text of a profile."""

from collections.abc import Sequence
from pathlib import Path

from vision3d_engine.core.columns import aligned
from vision3d_engine.debug.profile_costs import Costs

_MOST_ROWS = 12
_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def report(costs: Costs, steps: Sequence[int], trace: Path) -> str:
    """Return what a profile says, in tables.

    Args:
        costs: what a step costs.
        steps: the steps that were recorded.
        trace: where the trace is.
    """
    lines = [f"profile of {_named(steps)}: {costs.step_ms:.3g} ms a step; trace for ui.perfetto.dev: '{trace}'"]
    if costs.parts:
        lines.append("parts: " + ", ".join(f"{name} {time:.3g} ms" for name, time in costs.parts.items()))
    lines += _table("operation (own time)", ("ms/step", "share", "calls/step"), _operations(costs))
    lines += _table("module", ("forward ms", "backward ms", "FLOPs"), _modules(costs)) or [_NO_MODULES]
    if costs.flops is not None:
        rate = _large(costs.flops / max(costs.step_ms * 1e-3, 1e-12))
        lines.append(f"FLOPs: {_large(costs.flops)} a step (of step {steps[0] - 1}), {rate}FLOP/s with the profiler on")
    return "\n".join(lines)


def _named(steps: Sequence[int]) -> str:
    return f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"


def _operations(costs: Costs) -> list[tuple[str, ...]]:
    whole = max(costs.step_ms, 1e-12)
    return [
        (name, f"{time:.3f}", f"{time / whole:.0%}", f"{calls:.3g}") for name, (time, calls) in costs.operations.items()
    ]


def _modules(costs: Costs) -> list[tuple[str, ...]]:
    return [
        (name, f"{each.forward_ms:.3f}", f"{each.backward_ms:.3f}", "" if each.flops is None else _large(each.flops))
        for name, each in costs.modules.items()
    ]


def _table(title: str, heads: Sequence[str], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the lines of the first rows; none without rows."""
    shown = [(title, *heads), *rows[:_MOST_ROWS]] if rows else []
    return [f"  {line}".rstrip() for line in aligned(shown)]


def _large(number: float) -> str:
    """Return ``1.23 G``."""
    scale, unit = next(((size, unit) for size, unit in _UNITS if number >= size), (1, ""))
    return f"{number / scale:.3g} {unit}"


_NO_MODULES = "  modules and FLOPs are not told of a compiled model: run once with trainer.compile unset"
