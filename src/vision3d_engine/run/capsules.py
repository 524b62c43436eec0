"""One training step in one file: what a replay needs of it on any machine, without the data set."""

import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vision3d_engine.checkpoint.files import write_checkpoint
from vision3d_engine.checkpoint.loading import model_state
from vision3d_engine.core.errors import CheckpointError, EngineError, NonFiniteError, RegistrationError, add_note
from vision3d_engine.core.plain import printable
from vision3d_engine.core.portable import encoded
from vision3d_engine.core.replay_command import replay_command
from vision3d_engine.core.tracebacks import cause_of, users_part
from vision3d_engine.core.tree import to_cpu
from vision3d_engine.loop.context import PassContext
from vision3d_engine.loop.train_pass import TrainPass
from vision3d_engine.run.resume_state import ResumeState

# Of a run so many steps are kept whose updates are skipped; each is as large as a checkpoint.
_MAX_SKIPPED = 3


class Capsules:
    """Writes the training step at hand into ``debug/step-STEP.pt``: a checkpoint of the moment before, and its batch.

    Args:
        trainer: whose step it is.
        context: settings, processes, counters.
        resume_state: what a resume restores.
    """

    def __init__(self, trainer: Any, context: PassContext, resume_state: ResumeState) -> None:
        self._trainer, self._context, self._resume_state = trainer, context, resume_state
        self._skipped: set[int] = set()

    def dump(self) -> Path:
        """Write the step that runs; waits for the device.

        Raises:
            RegistrationError: outside of a training step, or behind its update.
            CheckpointError: for a batch that does not load as data only, and with ``trainer.parallel: fsdp2``.
            FolderError: when it cannot be written.
        """
        if not self._is_open:
            raise RegistrationError(_NO_STEP)
        return self._write(self._context.progress.total_steps, "dump_step()", "")

    def keep(self, error: Exception) -> None:
        """Write the step that has raised an error, and note in the error where it lies; what fails here is said.

        The counters have gone back to the last update.
        """
        progress = self._context.progress
        if not self._is_open:
            return
        step = progress.total_steps + progress.iteration - progress.trained
        add_note(error, self._kept(step, cause_of(error), _line_of(error)))

    def keep_skipped(self, error: NonFiniteError) -> None:
        """Write the step that runs, whose gradients are not finite, and say so: the first of its window.

        Nothing after the first few of a run, and nothing with fp16, where mostly the scale of the losses is to blame.
        """
        progress, is_scaled = self._context.progress, self._context.settings.precision == "fp16"
        if is_scaled or progress.updates in self._skipped or len(self._skipped) >= _MAX_SKIPPED:
            return
        self._skipped.add(progress.updates)
        said = self._kept(progress.total_steps, str(error), "")
        self._trainer.log(f"{error}; its update is skipped, and {said}", level="WARNING")

    def _kept(self, step: int, why: str, line: str) -> str:
        """Write a step, and return what there is to say of it."""
        try:
            return f"the step is kept: {replay_command(self._write(step, why, line))}"
        except EngineError as failure:
            return f"the step is not kept: {failure}"

    @property
    def _is_open(self) -> bool:
        """Whether a training step is at hand whose update is still to come."""
        now, progress = self._trainer._pass, self._context.progress  # noqa: SLF001  the engine's own
        return isinstance(now, TrainPass) and now.runner.batch is not None and progress.iteration > progress.trained

    def _write(self, step: int, why: str, line: str) -> Path:
        if self._context.parallel.store is not None:
            raise CheckpointError(_SPREAD)
        rank = self._context.world.rank
        path = self._context.debug_folder / (f"step-{step:06d}-rank{rank}.pt" if rank else f"step-{step:06d}.pt")
        write_checkpoint(path, {**self._before(step), "step": self._of_step(step, why, line)})
        return path

    def _before(self, step: int) -> dict[str, Any]:
        """Return a checkpoint of the moment before the step, as far as its loss follows from it."""
        trainer, progress = self._trainer, self._context.progress
        before = {"is_open": True, "is_trained": False, "trained": progress.iteration - 1, "total_steps": step - 1}
        parts = {"optimizer": trainer.optimizer, "scheduler": trainer.scheduler}
        states = {name: part.state_dict() for name, part in self._resume_state.registered.items()}
        return {
            "metadata": {**trainer.metadata, "total_steps": step - 1},
            "model": model_state(trainer.model),
            **{name: part.state_dict() for name, part in parts.items() if part is not None},
            "progress": {**asdict(progress), **before},
            "trained": self._resume_state.trained.state(),
            "precision": self._context.precision.state_dict(),
            "states": {name: encoded(state, f"['states'][{name!r}]") for name, state in states.items()},
            "about": {"torch": torch.__version__, "python": platform.python_version(), "processes": 1},
        }

    def _of_step(self, step: int, why: str, line: str) -> Mapping[str, Any]:
        context = self._context
        return {
            "batch": encoded(to_cpu(self._trainer._pass.runner.batch), "['batch']"),  # noqa: SLF001
            "samples": encoded(self._samples(), "['samples']"),
            "total_steps": step,
            "epoch": context.progress.epoch,
            "iteration": context.progress.iteration,
            "seed": context.seed,
            "rank": context.world.rank,
            "settings": printable(context.settings.model_dump(mode="json")),
            "why": why,
            "line": line,
        }

    def _samples(self) -> list[dict[str, Any]]:
        """Return which samples the batch is made of, with what each was seeded by; none where that is not known."""
        place, data = self._trainer._pass.runner.place, self._trainer._run.train_data()  # noqa: SLF001
        return [sample._asdict() for sample in data.seeded_samples_at(place) or []]


def _line_of(error: Exception) -> str:
    """Return the line of the script that an error has left last; empty if it has passed none."""
    own = users_part(error.__traceback__)
    while own is not None and own.tb_next is not None:
        own = own.tb_next
    return "" if own is None else f"{own.tb_frame.f_code.co_filename}, line {own.tb_lineno}"


_SPREAD = (
    "trainer.parallel is fsdp2, with which no process has all weights of a step; expected is 'ddp', or one process"
)
_NO_STEP = (
    "dump_step() was called where no training step is at hand, or behind its update, which has changed the weights; "
    "expected is a call in before_train_step, train_step or after_backward"
)
