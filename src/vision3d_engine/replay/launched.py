"""Starts the script that is replayed as processes of its own, and returns what they answer."""

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vision3d_engine.replay.plan import RUN, Plan
from vision3d_engine.replay.report import FAILED

_PROCESS = "vision3d_engine.replay.process"


def answer_of(plan: Plan, arguments: Sequence[str]) -> dict[str, Any]:
    """Start as many processes as a plan says, one where it does not, and return their answer.

    With it come the exit code and, of a step that hung, the stacks of all threads.
    """
    several = []
    if (processes := plan.processes or 1) > 1:
        several = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
    command = [sys.executable, "-m", *several, _PROCESS, plan.to_json(), *arguments]
    with subprocess.Popen(command) as process:  # noqa: S603  the user's own script
        try:
            code = process.wait()
        except BaseException:
            process.send_signal(signal.SIGTERM)
            raise
    written = sorted((Path(plan.scratch) / RUN / "debug").glob("hang-*.txt"))
    return plan.answer.read() | {"code": code, "stacks": [path.read_text() for path in written]}


def has_failed(answer: Mapping[str, Any]) -> bool:
    """Tell whether the step has raised, or was not come to."""
    return answer.get("verdict", FAILED) == FAILED


def values_text(answer: Mapping[str, Any]) -> str:
    """Return what the step has returned."""
    return ", ".join(f"{key} {value!r}" for key, value in answer["values"].items())
