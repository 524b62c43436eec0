"""Acts in the process of the script: waits for the step, looks into it, says what it has found, and ends it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from vision3d_engine.distributed.parallel.shards import local_part
from vision3d_engine.loop.hooks import Hook
from vision3d_engine.loop.result_checks import as_numbers
from vision3d_engine.metrics.running_means import read_numbers
from vision3d_engine.replay.causes import IN_DATA, IN_WEIGHTS
from vision3d_engine.replay.growth import Growth
from vision3d_engine.replay.inside import Inside
from vision3d_engine.replay.nonfinite import Origin, Search, not_finite
from vision3d_engine.replay.plan import Plan
from vision3d_engine.replay.report import Report, Samples
from vision3d_engine.replay.starting import Start


class StepProbe(Hook):
    """Looks into one step; it acts after all other hooks.

    Args:
        plan: which step, and what to do there.
        start: where the replay has started.
        recorded: by total steps, what steps of the run have returned.
    """

    def __init__(self, plan: Plan, start: Start, recorded: Mapping[int, Mapping[str, float]]) -> None:
        self._plan, self._start, self._recorded = plan, start, recorded
        self._report: Report | None = None
        self._outside: Origin | None = None
        self._inside, self._growth = Inside(torch.nn.Module()), Growth(())
        self._search = Search(lambda: self._inside.module, lambda: self._inside.is_looking)

    @property
    def _progress(self) -> Any:
        return self.owner._progress  # noqa: SLF001  the engine's own

    def before_train(self) -> None:
        """Begin to watch how the parameters grow."""
        self._growth = Growth(self.owner.model.named_parameters())

    def before_train_step(self, _epoch: int, _iteration: int, data_dict: Any) -> None:
        """Begin to look, if this is the step."""
        if not self._plan.target.is_at(self._progress):
            return
        owner, progress = self.owner, self._progress
        if self._plan.keeps_step:
            self._plan.answer.add(capsule=str(owner.dump_step()))
        self._inside = Inside(owner.model)
        samples = Samples.of(owner._pass.runner.place, owner._run.train_data(), data_dict)  # noqa: SLF001
        self._report = Report(progress.total_steps, progress.epoch, progress.iteration, self._start, samples)
        self._outside = _origin_outside(data_dict, samples, owner.model)
        self._report.growth = self._growth.text()
        self.say({})  # a step that ends the process has said what is known before it
        owner.train_step = self._looking_inside(owner.train_step)

    def _looking_inside(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Return a step that is looked into."""

        def look(*args: Any) -> Any:
            if self._plan.debugger:
                self.owner.breakpoint()
            try:
                with self._inside.watching(), self._search.in_forward():
                    returned = step(*args)
            except Exception:
                self.say({})
                raise
            if isinstance(returned, tuple) and isinstance(returned[-1], Mapping):
                self._search.follow_back(returned[-1].get("loss"))
            return returned

        return look

    def after_backward(self, _epoch: int, _iteration: int, _data: Any, _output: Any, _results: Any) -> None:
        """Look at the gradients of the parameters, before an update clears them."""
        if self._report is not None:
            self._inside.look_at_parameters()

    def after_train_step(self, _epoch: int, _iteration: int, _data: Any, _output: Any, result_dict: Any) -> None:
        """Say what was found, and end the process."""
        if self._report is None:
            self._growth.look(self._progress.total_steps)
            return
        values = read_numbers(dict(result_dict))
        self.say(values, self.owner._context.world.gather(self._found(values)))  # noqa: SLF001  all have looked
        raise SystemExit

    def say(self, values: Mapping[str, Any], found: Sequence[Origin | None] | None = None) -> None:
        """Say what is known of the step.

        Args:
            values: what it has returned; nothing if it has failed, or has yet to be made.
            found: what is to blame on each process; None where the others cannot be asked.
        """
        if self._report is None or not self.owner._context.world.is_main:  # noqa: SLF001
            return
        self._report.values, self._report.recorded = values, self._recorded.get(self._report.step)
        self._report.inside = self._inside
        self._report.origins = dict(enumerate([self._found(values)] if found is None else found))
        facts: dict[str, Any] = {"verdict": self._report.verdict, "text": self._report.text()}
        self._plan.answer.add(**facts, is_finite=self._is_finite(values), values=as_numbers(values))

    def _found(self, values: Mapping[str, Any]) -> Origin | None:
        """Return what is to blame here, if something is not finite."""
        return None if self._is_finite(values) else self._outside or self._search.forward or self._search.backward

    def _is_finite(self, values: Mapping[str, Any]) -> bool:
        """Tell whether results and gradients are finite; what is not inside may be meant so, as in masks."""
        inside = self._inside
        gradients = [*inside.gradients.values(), *inside.parameters.values()]
        return bool(values) and not not_finite(values) and not any(figures.nonfinite for figures in gradients)


def _origin_outside(data_dict: Any, samples: Samples, model: torch.nn.Module) -> Origin | None:
    """Return what is not finite before the step has begun."""
    if paths := not_finite(data_dict):
        return Origin(f"data_dict{paths[0]} holds NaN or infinity{samples.named_in(data_dict, paths[0])}", IN_DATA)
    if names := [name for name, each in model.named_parameters() if not_finite(local_part(each.detach()))]:
        return Origin(f"the parameter {names[0]} holds NaN or infinity", IN_WEIGHTS)
    return None
