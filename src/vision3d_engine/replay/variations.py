"""The step once more with something changed: in float64, or without each of its samples in turn."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vision3d_engine.replay.capsule import Capsule
from vision3d_engine.replay.launched import answer_of, has_failed, values_text
from vision3d_engine.replay.plan import Plan, Target


def varied(plan: Plan, arguments: Sequence[str], answer: Mapping[str, Any]) -> list[str]:
    """Run a step again as its plan says, and return what that says of each share that is to blame, or of the main one.

    Each time a new process starts from the file with the step: with its weights, optimizer, buffers and randomness.

    Args:
        plan: what the step was replayed by.
        arguments: the command line of the script.
        answer: what the replay has answered.
    """
    shares = {rank: share for rank, share in plan.shares.items() if "capsule" in share}  # which is kept to be varied
    to_blame = [rank for rank, share in shares.items() if share.get("is_to_blame")]
    was_finite = bool(answer.get("is_finite")) and not to_blame
    if was_finite and plan.vary == "sample":
        return ["the step is finite with all its samples, so none is left out"]
    return [_Share(plan, arguments, rank, shares[rank]).varied(was_finite) for rank in to_blame or list(shares)[:1]]


class _Share:
    """The share of a process in a step, run by one process.

    Args:
        plan: what the step was replayed by.
        arguments: the command line of the script.
        rank: whose share it is.
        kept: what the process has answered of it.
    """

    def __init__(self, plan: Plan, arguments: Sequence[str], rank: int, kept: Mapping[str, Any]) -> None:
        # By its own count: one process that has come to it by the steps of all has counted them all.
        target = Target(Capsule(Path(kept["capsule"])).step)
        start = {"capsule": kept["capsule"], "drawn": kept.get("drawn"), "target": target, "run": kept["run"]}
        self._plan = replace(plan, **_ALONE, **start)
        self._replayed, self._arguments, self._rank, self._kept = plan, arguments, rank, kept

    def varied(self, was_finite: bool) -> str:
        """Run it as it was, and then with something changed; return what that says.

        Args:
            was_finite: whether the step was in its replay.
        """
        lines = [f"share of process {self._rank}, by itself:"] if self._is_of_several else []
        if self._kept.get("whole"):
            return "\n".join([*lines, f"no sample is left out: {self._kept['whole']}"])
        whole = self._again("whole")
        lines += [f"with all samples: {_outcome(whole, whole)}"]
        if whole.get("is_finite") and not was_finite:
            return "\n".join([*lines, _FINITE_ALONE, *self._command()])
        if not _is_known(whole, whole):
            return "\n".join(lines)
        vary = self._in_double if self._replayed.vary == "precision" else self._without_each
        return "\n".join([*lines, *vary(whole)])

    @property
    def _is_of_several(self) -> bool:
        return (self._replayed.processes or 1) > 1

    def _again(self, name: str, **changes: Any) -> dict[str, Any]:
        scratch = Path(self._plan.scratch) / f"{name}-of-{self._rank}"
        scratch.mkdir()
        return answer_of(replace(self._plan, scratch=str(scratch), **changes), self._arguments)

    def _in_double(self, whole: Mapping[str, Any]) -> list[str]:
        again = self._again("double", in_double=True)
        if has_failed(again):
            return ["in float64: the step fails, see above" + ("" if has_failed(whole) else _OWN_TYPES)]
        verdict = _IN_DOUBLE[bool(whole.get("is_finite")), again["is_finite"]]
        return [f"in float64: {values_text(again)}; {verdict}"]

    def _without_each(self, whole: Mapping[str, Any]) -> list[str]:
        smaller = self._kept["smaller"]
        made = [(sample, self._again(f"without-{n}", batch=batch)) for n, (sample, batch) in enumerate(smaller)]
        lines = [f"without {sample['name']}: {_outcome(again, whole)}" for sample, again in made]
        helping = [sample for sample, again in made if again.get("is_finite")]
        said = [f"it is {sample['name']}: {sample['line'] or 'without it the step is finite'}" for sample in helping]
        unknown = sum(not _is_known(again, whole) for _, again in made)
        return [*lines, *(said or [_UNKNOWN.format(unknown, len(made)) if unknown else _NONE_HELPS])]

    def _command(self) -> list[str]:
        """Return how a person sees this share alone, where it is one of several."""
        words: list[Any] = [self._plan.script, "--step", self._plan.target.step, "--rank", self._rank, "--processes", 1]
        words += ["--", *self._arguments] if self._arguments else []
        command = shlex.join(map(str, ["vision3d-engine", "replay", *words]))
        return [f"to look into this share alone: {command}"] if self._is_of_several else []


def _outcome(again: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    if not has_failed(again):
        return f"{values_text(again)}; {'finite' if again['is_finite'] else 'not finite'}"
    reason = again.get("error") or again.get("refused") or "see above"
    return f"{'fails' if _is_known(again, whole) else 'cannot be run'}, {reason}"


def _is_known(again: Mapping[str, Any], whole: Mapping[str, Any]) -> bool:
    """Tell whether a step says something of the fault: it was made, or has raised what that with all samples raises."""
    same = (_NUMBERS.sub("", each.get("error", "")) for each in (again, whole))
    return not has_failed(again) or ("error" in again and len(set(same)) == 1)


_ALONE: dict[str, Any] = {
    "processes": 1,
    "debugger": False,
    "vary": None,
    "clouds": None,
    "rank": None,
    "reruns": False,
}
_OWN_TYPES = "; it makes tensors of a type of its own"
_NUMBERS = re.compile(r"[\d.]+")  # of shapes and values, which depend on the samples
_FINITE_ALONE = (
    "it is finite when one process runs it by itself, so no sample of it is to blame alone: the fault lies in what "
    "processes exchange, in what the script does otherwise on one of several, or in what it keeps outside of model, "
    "optimizer and registered states"
)
_UNKNOWN = (
    "{} of the {} steps without a sample cannot be run, so nothing is known of these samples; none of the others is to "
    "blame alone"
)
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
