"""The step once more with something changed: in float64, or without each of its samples in turn."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vision3d_engine.replay.launched import answer_of, has_failed, values_text
from vision3d_engine.replay.plan import Plan


def varied(plan: Plan, arguments: Sequence[str], answer: dict[str, Any]) -> str:
    """Run a step again as its plan says, and return what that says.

    Each time a new process starts from the file with the step: with its weights, optimizer, buffers and randomness.

    Args:
        plan: what the step was replayed by.
        arguments: the command line of the script.
        answer: what the replay has answered.
    """
    start = {"capsule": plan.capsule or answer["capsule"], "drawn": answer.get("drawn")}
    plan = replace(plan, processes=1, debugger=False, vary=None, clouds=None, rank=None, reruns=False, **start)
    return _in_double(plan, arguments, answer) if "smaller" not in answer else _without_each(plan, arguments, answer)


def _again(plan: Plan, arguments: Sequence[str], name: str, **changes: Any) -> dict[str, Any]:
    scratch = Path(plan.scratch) / name
    scratch.mkdir()
    return answer_of(replace(plan, scratch=str(scratch), **changes), arguments)


def _in_double(plan: Plan, arguments: Sequence[str], answer: dict[str, Any]) -> str:
    again = _again(plan, arguments, "double", in_double=True)
    if has_failed(again):
        return "in float64: the step fails, see above; it makes tensors of a type of its own"
    return f"in float64: {values_text(again)}; {_IN_DOUBLE[answer['is_finite'], again['is_finite']]}"


def _without_each(plan: Plan, arguments: Sequence[str], answer: dict[str, Any]) -> str:
    if answer.get("is_finite"):
        return "the step is finite with all its samples, so none is left out"
    if answer["whole"]:
        return f"no sample is left out: {answer['whole']}"
    lines, helping = [], []
    for number, (sample, batch) in enumerate(answer["smaller"]):
        again = _again(plan, arguments, f"without-{number}", batch=batch)
        lines.append(f"without {sample['name']}: {_outcome(again)}")
        helping += [sample] if again.get("is_finite") else []
    said = [f"it is {sample['name']}: {sample['line'] or 'without it the step is finite'}" for sample in helping]
    return "\n".join([*lines, *(said or [_NONE_HELPS])])


def _outcome(again: dict[str, Any]) -> str:
    if has_failed(again):
        return f"fails, {again.get('error', 'see above')}"
    return f"{values_text(again)}; {'finite' if again['is_finite'] else 'not finite'}"


_NONE_HELPS = (
    "leaving out one sample does not help, whichever it is: the fault lies in several of them, in the weights, or in "
    "the step itself"
)
_IN_DOUBLE = {  # whether the step is finite, and whether it is in float64
    (True, True): "finite in both",
    (True, False): "not finite there alone",
    (False, True): "finite there: the precision is too small for its numbers",
    (False, False): "not finite there either: the fault lies in its numbers, and not in their precision",
}
