"""Run one step of a run again, to the bit, and look into it: ``vision3d-engine replay``.

`starting` chooses where the run goes on from, `process` starts the script there, `probe` acts in it at the step:
`inside` takes figures, `nonfinite` and `causes` find what is not finite, and `report` says it.
"""

import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vision3d_engine.core.errors import EngineError
from vision3d_engine.replay.capsule import Capsule
from vision3d_engine.replay.plan import RUN, Plan, Target
from vision3d_engine.replay.report import DIFFERS, FAILED

_PROCESS = "vision3d_engine.replay.process"


def replay(
    script: Path, arguments: Sequence[str], target: Target, *, debugger: bool = False, in_double: bool = False
) -> tuple[str, str | None]:
    """Run a step of a script's run again, with as many processes; nothing is written into the folder of the run.

    Args:
        script: the training script.
        arguments: its command line, the same as that of the run.
        target: the step.
        debugger: open python's debugger in the step.
        in_double: run it once more in float64, in one process, and say whether that is finite.

    Returns:
        What is in the step, and what there is to say against it: it does not have the bits that the run had. None if
        it has.

    Raises:
        EngineError: when the script fails, or ends before the step.
    """
    return _replayed(Plan(str(script), target, "", debugger=debugger, keeps_step=in_double), arguments, in_double)


def replay_file(
    file: Path, script: Path, arguments: Sequence[str], *, debugger: bool = False, in_double: bool = False
) -> tuple[str, str | None]:
    """Run the step that lies in a file again, in one process, without the data of the script; see `replay`.

    Raises:
        CheckpointError: when there is no step in the file.
        EngineError: when the script fails.
    """
    target = Target(Capsule(file).step)
    plan = Plan(str(script), target, "", 1, debugger, str(file.absolute()))
    return _replayed(plan, arguments, in_double)


def _replayed(plan: Plan, arguments: Sequence[str], in_double: bool) -> tuple[str, str | None]:
    with tempfile.TemporaryDirectory(prefix="replay-") as scratch:
        plan = replace(plan, scratch=scratch)
        answer = _answer(plan, arguments, 1)
        if needed := answer.get("processes"):
            answer = _answer(replace(plan, processes=needed), arguments, needed)
        name = Path(plan.script).name
        _refuse_failure(answer, name, plan.target)
        said = f"\n\n{_in_double(plan, arguments, answer)}" if in_double else ""
    return answer["text"] + said, _DIFFERS.format(name, plan.target) if answer["verdict"] == DIFFERS else None


def _in_double(plan: Plan, arguments: Sequence[str], answer: dict[str, Any]) -> str:
    """Run a step that lies in a file, of the run or of a replay of it, in float64; return what that says."""
    scratch = Path(plan.scratch) / "double"
    scratch.mkdir()
    file = plan.capsule or answer["capsule"]
    again = _answer(Plan(plan.script, plan.target, str(scratch), 1, capsule=file, in_double=True), arguments, 1)
    if again.get("verdict", FAILED) == FAILED:
        return "in float64: the step fails, see above; it makes tensors of a type of its own"
    values = ", ".join(f"{key} {value!r}" for key, value in again["values"].items())
    return f"in float64: {values}; {_IN_DOUBLE[answer['is_finite'], again['is_finite']]}"


def _answer(plan: Plan, arguments: Sequence[str], processes: int) -> dict[str, Any]:
    """Start a script, and return what its processes answer."""
    several = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"] if processes > 1 else []
    command = [sys.executable, "-m", *several, _PROCESS, plan.to_json(), *arguments]
    with subprocess.Popen(command) as process:  # noqa: S603  the user's own script
        try:
            code = process.wait()
        except BaseException:
            process.send_signal(signal.SIGTERM)
            raise
    written = sorted((Path(plan.scratch) / RUN / "debug").glob("hang-*.txt"))
    return plan.answer.read() | {"code": code, "stacks": [path.read_text() for path in written]}


def _refuse_failure(answer: dict[str, Any], script: str, target: Target) -> None:
    if "verdict" in answer and answer["verdict"] != FAILED:
        return
    how = f"failed with code {answer['code']}, before or in" if answer["code"] else "ended before"
    message = f"{script} {how} {target}: see what it has said above. Expected is a step that the run has made, and "
    message += "behind -- the arguments that the run had"
    raise EngineError("\n\n".join([message, *filter(None, [answer.get("text")]), *answer["stacks"]]))


_DIFFERS = (
    "{} has other numbers in {} than the run had. Usual causes: another command line; another version of script, data "
    "or torch; another device, number of threads; or the script does not repeat itself, for which "
    "vision3d-engine verify-resume looks"
)
_IN_DOUBLE = {  # whether the step is finite, and whether it is in float64
    (True, True): "finite in both",
    (True, False): "not finite there alone",
    (False, True): "finite there: the precision is too small for its numbers",
    (False, False): "not finite there either: the fault lies in its numbers, and not in their precision",
}
