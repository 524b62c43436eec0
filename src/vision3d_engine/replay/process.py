"""The process of a script that is replayed: ``python -m vision3d_engine.replay.process PLAN ARGUMENTS``."""

import runpy
import sys
from functools import partial
from pathlib import Path
from typing import Any

from vision3d_engine.core import cli
from vision3d_engine.core.children import end_with
from vision3d_engine.core.files import absolute_path
from vision3d_engine.distributed.world import World
from vision3d_engine.loop.hooks import PROBES
from vision3d_engine.replay.capsule import Capsule, CapsuleProbe
from vision3d_engine.replay.extent import refusal
from vision3d_engine.replay.plan import RUN, Plan
from vision3d_engine.replay.probe import StepProbe
from vision3d_engine.replay.share import ShareProbe
from vision3d_engine.replay.starting import Start, newest_start, start_before
from vision3d_engine.run.run_folder import STEPS, checkpoints_of, logs_of
from vision3d_engine.run.session import REDIRECTIONS
from vision3d_engine.writers.step_values import recorded_steps

# What would end or stop a replay, or slow it down, and changes no bit.
_PLAIN: dict[str, Any] = {
    "fast_dev_run": 0,
    "debug": False,
    "pdb": False,
    "profile": None,
    "memory_snapshot": False,
    "on_hang": "stop",
    "max_time": None,
    "requeue": False,
    "save_every": "1 epoch",
    "replay_every": None,
    "save_latest_n_models": 1,
    "overwrite": True,
    "on_resume": "keep",
}


def act() -> None:
    """Run a script as told by the first word of the command line."""
    text, *arguments = cli.own_words()
    plan = Plan.from_json(text)
    end_with(plan.command)
    cli.pretend(plan.script, arguments)
    prepare(plan)
    sys.path[0] = str(Path(plan.script).absolute().parent)
    runpy.run_path(plan.script, run_name="__main__")


def prepare(plan: Plan) -> None:
    """Let the trainers that this process makes from now on replay a step."""
    REDIRECTIONS.append(partial(_redirected, plan))


def _redirected(plan: Plan, settings: Any, world: World) -> Any:
    """Return the settings with which a script goes on before the step and writes into the scratch folder.

    With another number of processes than the run had the program ends, and says how many it needs.
    """
    run = absolute_path(settings.exp.output_dir)
    if plan.run is not None and absolute_path(plan.run).resolve() != run.resolve():
        return _passed(plan, settings, newest_start(checkpoints_of(settings.exp), run), says=world.is_main)
    if settings.trainer.parallel == "fsdp2" and world.size > 1:
        plan.refuse(_SPREAD, says=world.is_main)
    if plan.capsule is not None:
        return _on_capsule(plan, settings, Capsule(Path(plan.capsule)))
    if why := refusal(plan.target, settings):
        plan.refuse(why, says=world.is_main)
    start = start_before(plan.target, checkpoints_of(settings.exp), run)
    if plan.rank is not None or (plan.reruns and start.processes > 1):
        return _on_share(plan, settings, start)
    if plan.processes is None and start.processes not in {0, world.size}:
        plan.answer.add(processes=start.processes)
        raise SystemExit
    recorded = recorded_steps(logs_of(settings.exp) / STEPS)
    PROBES[:] = [partial(StepProbe, plan, start, recorded)]
    return _changed(settings, plan, {}, _from(start, settings.trainer))


def _passed(plan: Plan, settings: Any, start: Start, *, says: bool) -> Any:
    """Return the settings with which another trainer than the one asked for goes on from where its run has come to."""
    if says:
        plan.answer.add(passed=[*plan.answer.read().get("passed", []), str(start.run)])
    PROBES.clear()
    return _changed(settings, plan, {}, _from(start, settings.trainer))


def _on_share(plan: Plan, settings: Any, start: Start) -> Any:
    """Return the settings with which one process makes the updates of several."""
    if not (plan.rank or 0) < start.processes:
        plan.refuse(_NO_SUCH.format(plan.rank, start.processes))
    if not (start.is_next or plan.reruns):
        plan.refuse(_EARLIER.format(plan.rank, plan.target, start))
    if settings.trainer.parallel == "fsdp2":
        plan.refuse(_SPREAD)
    recorded = recorded_steps(logs_of(settings.exp) / STEPS)
    PROBES[:] = [partial(ShareProbe, plan, start, recorded, settings.exp.seed)]
    together = {"grad_acc_steps": settings.trainer.grad_acc_steps * start.processes}
    return _changed(settings, plan, {}, _from(start, settings.trainer) | together)


def _on_capsule(plan: Plan, settings: Any, capsule: Capsule) -> Any:
    """Return the settings with which a script makes the step of a file, and no other."""
    start = Start(capsule.path, capsule.step - 1, 1, absolute_path(settings.exp.output_dir))
    PROBES[:] = [partial(CapsuleProbe, plan, start, capsule)]
    trainer = {**_from(start, settings.trainer), "overfit": 0, "val_first": False}
    trainer |= {"precision": "fp32"} if plan.in_double else {}
    return _changed(settings, plan, {"seed": capsule.seed}, trainer)


def _changed(settings: Any, plan: Plan, exp: dict[str, Any], trainer: dict[str, Any]) -> Any:
    folders = {"output_dir": Path(plan.scratch) / RUN, "checkpoint_dir": None, "log_dir": None, "event_dir": None}
    parts = {"exp": settings.exp.model_copy(update=folders | exp)}
    parts["trainer"] = settings.trainer.model_copy(update=_PLAIN | trainer)
    return settings.model_copy(update=parts)


_NO_SUCH = "replay got --rank {}; the run had {} processes, counted from 0"
_EARLIER = (
    "replay --rank {} of {} starts from {}, which lies further back; expected is a checkpoint of the very step "
    "(trainer.replay_every). Add --processes 1 to make the steps in between in one process too: its numbers are then "
    "equal to a tolerance alone; or leave --rank out"
)
_SPREAD = (
    "replay got trainer.parallel: fsdp2, whose modules and gradients are spread over the processes; expected is 'ddp', "
    "or one process"
)


def _from(start: Start, trainer: Any) -> dict[str, Any]:
    """Return what lets a run begin at a start; at its own beginning with what it was given to begin with."""
    if start.path is not None:
        return {"resume": True, "checkpoint": str(start.path)}
    return {"resume": trainer.resume and trainer.checkpoint is not None}


if __name__ == "__main__":
    act()
