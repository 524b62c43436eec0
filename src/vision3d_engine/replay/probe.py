"""Acts in the process of the script: waits for the step, looks into it, says what it has found, and ends it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vision3d_engine.core.errors import DataError
from vision3d_engine.core.seeding import kept_generators
from vision3d_engine.core.tracebacks import cause_of
from vision3d_engine.core.tree import leaves, to_cpu
from vision3d_engine.data.sample_seeds import SampleIndex
from vision3d_engine.distributed.world import World
from vision3d_engine.loop.hooks import Hook
from vision3d_engine.loop.result_checks import as_numbers
from vision3d_engine.metrics.running_means import read_numbers
from vision3d_engine.replay.causes import IN_DATA, cause_in_weights
from vision3d_engine.replay.clouds import write_clouds
from vision3d_engine.replay.growth import Growth
from vision3d_engine.replay.inside import Inside
from vision3d_engine.replay.nonfinite import NOWHERE, Search
from vision3d_engine.replay.origin import Origin
from vision3d_engine.replay.plan import AnswerFile, Plan
from vision3d_engine.replay.report import Report, Samples, samples_text
from vision3d_engine.replay.smaller_batches import without_each, write_batches
from vision3d_engine.replay.starting import Start
from vision3d_engine.replay.values import INFINITY, not_finite, trouble_of

Found = tuple[Origin | None, list[str]]
"""What is to blame on a process, and the lines of its samples."""


class StepProbe(Hook):
    """Looks into one step; it acts after all other hooks.

    Args:
        plan: which step, and what to do there.
        start: where the replay has started.
        recorded: by total steps, what steps of the run have returned.
        tolerance: by which share numbers may differ from these; 0 where their bits are the same.
    """

    def __init__(
        self, plan: Plan, start: Start, recorded: Mapping[int, Mapping[str, float]], tolerance: float = 0
    ) -> None:
        self._plan, self._start, self._recorded = plan, start, recorded
        self._tolerance = tolerance
        self._report: Report | None = None
        self._batch: Any = None
        self._inside, self._growth = Inside(torch.nn.Module()), Growth(())
        self._search = Search(lambda: self._inside.module, lambda: self._inside.is_looking)

    @property
    def _moment(self) -> Any:
        """Where the step at hand stands in the run."""
        return self.owner._progress  # noqa: SLF001  the engine's own

    @property
    def _world(self) -> World:
        return self.owner._context.world  # noqa: SLF001

    @property
    def _share(self) -> AnswerFile:
        """Where this process answers of its share."""
        return self._plan.share(self._world.rank)

    def _is_here(self) -> bool:
        """Tell whether the step at hand is the one."""
        return self._plan.target.is_at(self._moment)

    def _title(self) -> str:
        """Say which part of the step it is; nothing where it is all that this process had."""
        return ""

    def before_train(self) -> None:
        """Begin to watch how the parameters grow."""
        self._growth = Growth(self.owner.model.named_parameters())

    def before_train_step(self, _epoch: int, _iteration: int, data_dict: Any) -> None:
        """Begin to look, if this is the step."""
        if not self._is_here():
            return
        owner, moment, self._batch = self.owner, self._moment, data_dict
        self._inside = Inside(owner.model)
        samples = Samples.of(self._seeded(), data_dict)
        self._share.add(run=str(self._start.run))
        if self._plan.vary is not None:
            self._share.add(**self._kept(samples))
        self._report = Report(moment.total_steps, moment.epoch, moment.iteration, self._start, samples)
        self._report.title, self._report.tolerance = self._title(), self._tolerance
        self._report.processes = self._world.size
        for value, origin in _origins_outside(data_dict, samples, owner.model, moment.total_steps):
            self._search.know(value, origin)
        self._report.growth = self._growth.text()
        self.say({})  # a step that ends the process has said what is known before it
        owner.train_step = self._looking_inside(owner.train_step)
        owner.update = self._following(owner.update)

    def _seeded(self) -> list[SampleIndex]:
        """Return which samples the batch is made of, with what each was seeded by; none where that is not known."""
        return self.owner._run.train_data().seeded_samples_at(self.owner._pass.runner.place) or []  # noqa: SLF001

    @property
    def _loader(self) -> Any:
        """The loader that has joined the batch."""
        return self.owner._run.train_data().loader  # noqa: SLF001

    def _kept(self, samples: Samples) -> dict[str, Any]:
        """Write what another run of the step needs, and return where it lies; draws nothing of what the step draws."""
        kept = {"capsule": self._plan.capsule or str(self.owner.dump_step())}
        if self._plan.vary != "sample":
            return kept
        batch = to_cpu(self.owner._pass.runner.batch)  # noqa: SLF001
        loadable = [] if self._plan.capsule else samples.seeded
        try:
            with kept_generators(self.owner.device):
                smaller = without_each(batch, self._loader, loadable)
        except DataError as error:
            return {**kept, "smaller": [], "whole": str(error)}
        paths = write_batches(Path(self._plan.scratch) / f"batches-{self._world.rank}", smaller)
        return {**kept, "smaller": list(zip(samples.told(batch, len(paths)), paths, strict=True)), "whole": ""}

    def _looking_inside(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Return a step that is looked into."""

        def look(epoch: int, iteration: int, data_dict: Any) -> Any:
            if self._plan.debugger:
                self.owner.breakpoint()
            try:
                with self._inside.watching(), self._search.in_forward():
                    returned = step(epoch, iteration, data_dict)
            except Exception as error:
                self._share.add(is_to_blame=True, failed=self._failure(cause_of(error)))
                self.say({}, error=cause_of(error))
                raise
            if isinstance(returned, tuple) and isinstance(returned[-1], Mapping):
                self._search.follow_back(returned[-1].get("loss"))
                self._search.judge(returned[-1])
            return returned

        return look

    def _failure(self, cause: str) -> str:
        """Say what has failed here, and which samples this process had."""
        rank, samples = self._world.rank, self._report.samples.lines if self._report else []
        return "\n".join([f"process {rank} has failed: {cause}", *samples_text(f"samples of process {rank}:", samples)])

    def _following(self, update: Callable[..., Any]) -> Callable[..., Any]:
        """Return an update in the midst of the step whose loss is followed back."""

        def follow(name: str, loss: Any, *args: Any, **options: Any) -> Any:
            self._search.follow_back(loss)
            with self._search.outside_forward(), self._inside.taking_gradients():
                return update(name, loss, *args, **options)

        return follow

    def after_backward(self, _epoch: int, _iteration: int, _data: Any, _output: Any, _results: Any) -> None:
        """Look at the gradients of the parameters, before an update clears them."""
        if self._report is not None:
            self._inside.look_at_parameters()

    def after_train_step(self, _epoch: int, _iteration: int, _data: Any, _output: Any, result_dict: Any) -> None:
        """Say what was found, and end the process."""
        if self._report is None:
            self._growth.look(self._moment.total_steps)
            return
        values = read_numbers(dict(result_dict))
        found = _to_blame(self._world.gather((self._found(values), self._report.samples.lines)))  # all have looked
        self._share.add(is_to_blame=found[self._world.rank][0] is not None)
        self.say(values, found)
        raise SystemExit

    def after_train_epoch(self, epoch: int, *_: Any) -> None:
        """Refuse a step that the epoch does not have, rather than train on to the end of the run."""
        if epoch == self._plan.target.epoch:
            message = f"replay got {self._plan.target}; epoch {epoch} has {self._moment.iteration} iterations"
            self._plan.refuse(message, says=self._world.is_main)

    def say(self, values: Mapping[str, Any], found: Sequence[Found] | None = None, **further: Any) -> None:
        """Say what is known of the step.

        Args:
            values: what it has returned; nothing if it has failed, or has yet to be made.
            found: what is to blame on each process, and its samples; None where the others cannot be asked.
            further: what else to answer.
        """
        if self._report is None or not self._world.is_main:
            return
        found = [(self._found(values), self._report.samples.lines)] if found is None else found
        self._report.values, self._report.recorded = values, self._recorded.get(self._report.step)
        self._report.inside = self._inside
        self._report.origins = {rank: origin for rank, (origin, _) in enumerate(found)}
        self._report.lines = {rank: lines for rank, (_, lines) in enumerate(found)}
        facts = {"verdict": self._report.verdict, "text": self._report.text(), **further}
        self._plan.answer.add(**facts, is_finite=self._is_finite(values), values=as_numbers(values))
        if self._plan.clouds is not None and (values or further):
            self._write_clouds(Path(self._plan.clouds), self._report.samples)

    def _write_clouds(self, folder: Path, samples: Samples) -> None:
        """Write the clouds of the batch; what cannot be shown is answered."""
        names = [sample["name"] for sample in samples.told(self._batch, len(samples.seeded))]
        try:
            write_clouds(folder, self._batch, self.owner.endpoints.data_dict, names)
        except DataError as error:
            self._plan.answer.add(not_shown=str(error))

    def _found(self, values: Mapping[str, Any]) -> Origin | None:
        """Return what is to blame here, if something is not finite; of a step that has returned nothing, a suspect."""
        if not values:
            return self._search.suspect
        return None if self._is_finite(values) else self._search.found

    def _is_finite(self, values: Mapping[str, Any]) -> bool:
        """Tell whether results and gradients of leaves are finite; what is not inside may be meant so, as in masks."""
        gradients = self._inside.parameters.values()
        is_broken = self._search.has_reached_leaf or any(figures.nonfinite for figures in gradients)
        return bool(values) and not not_finite(values) and not is_broken


def _to_blame(found: Sequence[Found]) -> Sequence[Found]:
    """Return what was found on each process, without those whose gradients another one has broken in their exchange."""
    if all(origin in {None, NOWHERE} for origin, _ in found):
        return found
    return [(None if origin == NOWHERE else origin, lines) for origin, lines in found]


def _origins_outside(
    data_dict: Any, samples: Samples, model: torch.nn.Module, step: int
) -> Iterator[tuple[Any, Origin]]:
    """Yield what is not finite before the step has begun, with what is to be said of it."""
    for path, leaf in leaves(data_dict):
        if trouble_of(leaf):
            yield leaf, Origin(f"data_dict{path} holds NaN or infinity{samples.named_in(data_dict, path)}", IN_DATA)
    broken = {name: each for name, each in model.named_parameters() if trouble_of(each)}
    for each in broken.values():
        yield each, Origin(f"the parameter {next(iter(broken))} holds NaN or infinity", cause_in_weights(step))
    for name, each in model.named_buffers():
        if trouble := trouble_of(each):  # infinity is that of a mask
            yield (
                each,
                Origin(f"the buffer {name} holds {trouble}", cause_in_weights(step), is_meant=trouble == INFINITY),
            )
