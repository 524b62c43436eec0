"""The side of the script's process: run it as planned, note every moment, and end where the plan says."""

import json
import os
import runpy
import signal
import sys
from dataclasses import astuple, replace
from functools import partial
from pathlib import Path
from typing import Any

from vision3d_engine.core import cli
from vision3d_engine.core.children import end_with
from vision3d_engine.loop.hooks import PROBES, TRAIN_HOOKS, Hook
from vision3d_engine.verification.notes import parts_of
from vision3d_engine.verification.places import STEPS, Place
from vision3d_engine.verification.runs import Plan

# Not a moment of a run: it acts in those only that resume.
_LOADING = "before_load"


def act() -> None:
    """Run a script as told by the first word of the command line."""
    text, *arguments = cli.own_words()
    plan = Plan.from_json(text)
    end_with(plan.command)
    cli.pretend(plan.script, arguments)
    cli.force(
        exp={"output_dir": plan.folder, "checkpoint_dir": None, "log_dir": None, "event_dir": None},
        trainer={
            "save_every": f"{plan.save_every} iterations",
            "limit_batches": plan.longest_epoch,
            "num_iters_per_epoch": plan.longest_epoch,
            "async_save": False,
            "overwrite": True,
            "resume": plan.resume,
        },
    )
    PROBES.append(partial(Probe, plan))
    sys.path.insert(0, str(Path(plan.script).absolute().parent))
    runpy.run_path(plan.script, run_name="__main__")


class Probe(Hook):
    """Notes the bits of every moment after all other hooks, and ends the process where the plan says."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        for moment in TRAIN_HOOKS:
            if moment != _LOADING:
                setattr(self, moment, partial(self._act, moment))

    def _act(self, moment: str, *args: Any) -> None:
        numbers = (arg for arg in args if isinstance(arg, int))
        val_set = getattr(self.owner._pass, "set_name", None)  # noqa: SLF001  the engine's own
        place = Place(moment, *numbers, val_set=val_set)
        with Path(self._plan.trace).open("a", encoding="utf-8") as file:
            file.write(json.dumps([astuple(place), parts_of(self.owner, moment, args)]) + "\n")
        self._end_if_planned(place)
        if moment in STEPS:
            self._plan_end_within(replace(place, moment=STEPS[moment]))
        if moment == "before_train_epoch" and self._is_over():
            os._exit(0)

    def _end_if_planned(self, place: Place) -> None:
        kill = self._plan.kill
        if kill is None or place != kill.place:
            return
        if kill.number == signal.SIGKILL:
            os.kill(os.getpid(), signal.SIGKILL)
        os.killpg(os.getpgid(0), kill.number)

    def _plan_end_within(self, place: Place) -> None:
        """Let a step that is to be killed end before it returns."""
        if self._plan.kill is None or place != self._plan.kill.place:
            return
        step = getattr(self.owner, place.moment)

        def killed(*args: Any) -> Any:
            returned = step(*args)
            self._end_if_planned(place)
            setattr(self.owner, place.moment, step)
            return returned

        setattr(self.owner, place.moment, killed)

    def _is_over(self) -> bool:
        """Tell whether the epoch that opens is one more than planned; not one that a resume opens again."""
        progress = self.owner._progress  # noqa: SLF001  the engine's own
        return progress.total_steps >= self._plan.steps and not (progress.trained or progress.is_trained)
