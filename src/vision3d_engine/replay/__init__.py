"""Run one step of a run again, to the bit, and look into it: ``vision3d-engine replay``.

`starting` chooses where the run goes on from, `launched` and `process` start the script there, `probe` acts in it at
the step: `inside` takes figures, `nonfinite` and `causes` find what is not finite, and `report` says it. `variations`
run the step once more with something changed.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from vision3d_engine.core.errors import ConfigError, EngineError
from vision3d_engine.replay.capsule import Capsule
from vision3d_engine.replay.launched import answer_of, has_failed
from vision3d_engine.replay.plan import Plan, Target, Vary
from vision3d_engine.replay.report import DIFFERS
from vision3d_engine.replay.variations import varied


class Looks(TypedDict, total=False):
    """How a step is looked into.

    Attributes:
        debugger: open python's debugger in the step.
        vary: run it once more, in one process: in float64 (``"precision"``), or without each sample of its batch in
            turn (``"sample"``), of several processes the share of each that is to blame; and say whether that is
            finite.
        clouds: write the clouds of the batch into this folder, as a test leaves those of its cases.
        run: of a script with several trainers the run folder of the one whose step it is; else the first that makes
            it is looked into.
    """

    debugger: bool
    vary: Vary | None
    clouds: str | None
    run: str | None


def replay(
    script: Path,
    arguments: Sequence[str],
    target: Target,
    *,
    rank: int | None = None,
    in_one_process: bool = False,
    **looks: Unpack[Looks],
) -> tuple[str, str | None]:
    """Run a step of a script's run again, with as many processes; nothing is written into the folder of the run.

    Args:
        script: the training script.
        arguments: its command line, the same as that of the run.
        target: the step.
        rank: of several processes the one whose share is replayed, in one process, from a checkpoint of the very step.
        in_one_process: replay a step of several processes so from any checkpoint, to a tolerance.
        looks: see `Looks`.

    Returns:
        What is in the step, and what there is to say against it: it does not have the bits that the run had. None if
        it has.

    Raises:
        ConfigError: for a step that cannot be replayed so, saying why.
        EngineError: when the script fails, or ends before the step.
    """
    _require(script)
    alone = 1 if rank is not None or in_one_process else None
    return _replayed(Plan(str(script), target, "", alone, rank=rank, reruns=in_one_process, **looks), arguments)


def replay_file(file: Path, script: Path, arguments: Sequence[str], **looks: Unpack[Looks]) -> tuple[str, str | None]:
    """Run the step that lies in a file again, in one process, without the data of the script; see `replay`.

    Raises:
        ConfigError: when there is no such file, or no such script.
        CheckpointError: when there is no step in the file.
        EngineError: when the script fails.
    """
    _require(file, script)
    target = Target(Capsule(file).step)
    return _replayed(Plan(str(script), target, "", 1, capsule=str(file.absolute()), **looks), arguments)


def _require(*files: Path) -> None:
    if missing := [str(file) for file in files if not file.is_file()]:
        raise ConfigError(f"replay got '{missing[0]}', which does not exist. Expected is the path of a file")


def _replayed(plan: Plan, arguments: Sequence[str]) -> tuple[str, str | None]:
    with tempfile.TemporaryDirectory(prefix="replay-") as scratch:
        plan = replace(plan, scratch=scratch)
        answer = answer_of(plan, arguments)
        if needed := answer.get("processes"):
            plan = replace(plan, processes=needed)
            answer = answer_of(plan, arguments)
        if "refused" in answer:
            raise ConfigError(answer["refused"])
        if not (plan.shares or answer["code"]) and "passed" in answer:
            raise ConfigError(
                _NO_RUN.format(plan.run, Path(plan.script).name, plan.target, ", ".join(answer["passed"]))
            )
        name, of_others = Path(plan.script).name, [share for rank, share in plan.shares.items() if rank]
        failures = [share["failed"] for share in of_others if "failed" in share]
        said = "".join(f"\n\n{part}" for part in [*failures, *varied(plan, arguments, answer)])
    said += f"\n\nno clouds are shown: {answer['not_shown']}" if "not_shown" in answer else ""
    if has_failed(answer):
        raise EngineError(_failure(answer, name, plan.target) + said)
    return answer["text"] + said, _DIFFERS.format(name, plan.target) if answer["verdict"] == DIFFERS else None


def _failure(answer: dict[str, Any], script: str, target: Target) -> str:
    how = f"failed with code {answer['code']}, before or in" if answer["code"] else "ended before"
    message = f"{script} {how} {target}: see what it has said above. Expected is a step that the run has made, and "
    message += "behind -- the arguments that the run had"
    return "\n\n".join([message, *filter(None, [answer.get("text")]), *answer["stacks"]])


_NO_RUN = (
    "replay got --run {}; no trainer of {} with this run folder has made {}. Other run folders of the script: {}. "
    "Expected is the folder of a run that has made the step"
)
_DIFFERS = (
    "{} has other numbers in {} than the run had. Usual causes: another command line; another version of script, data "
    "or torch; another device, number of threads; or the script does not repeat itself, for which "
    "vision3d-engine verify-resume looks"
)
