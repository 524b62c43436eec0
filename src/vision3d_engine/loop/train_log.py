"""What a log line of the training says: its numbers, where they go, and what is looked at on the way."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any

import torch

from vision3d_engine.data.loader_hints import SLOW_S, loading_hint, startup_hint
from vision3d_engine.data.resumable_loader import ResumableLoader
from vision3d_engine.debug.finite import FiniteWatch, NonFiniteNotes
from vision3d_engine.logs.log_line import get_log_string, train_line
from vision3d_engine.loop.context import PassContext
from vision3d_engine.loop.pass_metrics import PassMetrics
from vision3d_engine.loop.run_length import RunLength
from vision3d_engine.loop.runner import Runner
from vision3d_engine.loop.skipping import TrainSkips, with_skipped
from vision3d_engine.loop.step_marks import StepMarks
from vision3d_engine.loop.step_sampler import StepSampler
from vision3d_engine.loop.trained import Trained
from vision3d_engine.metrics.running_means import SKIPPED, RunningMeans
from vision3d_engine.optim.named_groups import learning_rates


class TrainLog:
    """Reads the numbers of a training pass at log lines, and hands them to the log, the writers and `after_log`.

    Nothing is read from the device between two lines; at a line all numbers come in one copy.

    Args:
        trainer: whose ``log`` and ``log_steps`` count.
        context: what all passes share.
        loader: the training data.
        runner: whose times are told.
        meters: the running means of the pass.
        metrics: its metrics over the whole set.
        skips: what the pass leaves out.
        ending: whether a process has asked for the end of the run (`run.ending.Ending`); all learn of it at a line.
        marks: marks the parts of steps.
    """

    def __init__(  # noqa: PLR0913  what a pass is made of
        self,
        trainer: Any,
        context: PassContext,
        loader: ResumableLoader,
        *,
        runner: Runner,
        meters: RunningMeans,
        metrics: PassMetrics,
        skips: TrainSkips,
        ending: Any,
        marks: StepMarks,
    ) -> None:
        self.every = trainer.log_steps
        self._trainer, self._context = trainer, context
        self._loader, self._runner, self._meters = loader, runner, meters
        self._metrics, self._skips, self._ending = metrics, skips, ending
        parallel, is_enabled = context.parallel, context.settings.nonfinite != "ignore"
        is_spread, notes = parallel.store is not None, NonFiniteNotes(context.debug_folder, context.world.is_main)
        parts: dict[str, Any] = {"is_spread": is_spread, "gather": context.world.gather}
        self._finite = FiniteWatch(trainer.model, is_enabled, notes, **parts)
        self._say = trainer._line_writer()  # noqa: SLF001  the engine's own
        self._after_log = context.hooks.of("after_log")
        self._length, self._samples_per_step = RunLength.of(context.settings), loader.samples_per_step
        self._rates = learning_rates(trainer.optimizer)
        self._marks, window = marks, context.settings.grad_acc_steps
        self._sampler = StepSampler(runner, marks, context.times.measured, window)
        context.replicas.watch(partial(Trained, trainer))

    def begin(self) -> None:
        """Look at the steps of the pass that are to be looked at, before the first one."""
        self._context.profiled.watch(self._runner, self._marks, self._trainer.model)
        self._sampler.arm()

    def note_rates(self, iteration: int) -> None:
        """Note the learning rates before an update, where they will be written: the schedule moves before the end."""
        if iteration % self.every == 0 or self._runner.is_last or self._runner.max_iteration is None:
            self._rates = learning_rates(self._trainer.optimizer)

    def write(self, iteration: int) -> None:
        """Write the means since the last line, with the learning rates that the step used.

        Raises:
            NonFiniteError: when the loss, or a weight, is not finite.
            ReplicaError: when the processes' weights differ.
        """
        context, progress = self._context, self._context.progress
        scaling = context.precision.probe()
        means, probed = self._read(iteration // self.every, (*self._finite.probe(), *scaling.values()))
        means |= dict(zip(scaling, probed[len(probed) - len(scaling) :], strict=True))
        self._check_finite(means, probed)
        interval, position = self._runner.clock.interval(), self._position()
        context.writers.scalars("train", means, context.counters.step_of("train"), **position)
        self._say(self._line(means, interval, position))
        self._runner.bar.show(means)
        if interval.steady_data_s > SLOW_S:
            context.hints.tell(loading_hint(self._loader.loader, interval.steady_data_s, interval.model_s))
        with context.times.around.part("after_log"):
            for act in self._after_log:
                act(progress.epoch, iteration, dict(means))
        context.times.fold()
        self._sampler.arm()

    def _check_finite(self, means: Mapping[str, float], probed: Sequence[float]) -> None:
        loss = 0.0 if "loss" in self._meters.weightless else means.get("loss", 0.0)
        self._finite.check(loss, probed, self._meters.first_not_finite("loss"), self._context.progress)

    def _read(self, line: int, probes: Sequence[torch.Tensor] = ()) -> tuple[dict[str, float], list[float]]:
        """Return the means since the last line, and the probes as numbers; compare what all processes train with it.

        All processes learn whether one of them has asked for the end of the run.
        """
        replicas = self._context.replicas
        shared = replicas.probe(line) if replicas.is_on else {}
        looks = (self._skips.updates, self._context.captures, self._context.parameter_statistics)
        groups = [[*probes], *(look.probe() for look in looks)]
        shared = {**shared, **self._ending.shared()}
        means, read, sums = self._meters.interval_means(*chain.from_iterable(groups), shared=shared)
        self._ending.hear(sums)
        self._record_steps()
        if sums:
            replicas.judge(sums, self._where())
        self._skips.limit.add(self._meters.counted.get(SKIPPED, 0))
        numbers = iter(read)
        probed, *told = ([*islice(numbers, sum(map(torch.numel, group)))] for group in groups)
        for look, own in zip(looks, told, strict=True):
            if said := look.tell(own):
                self._context.logger.warn(said)
        return with_skipped(means, self._meters), probed

    def _record_steps(self) -> None:
        """Hand in what the steps since the last line have returned."""
        progress = self._context.progress
        for values in self._meters.steps:
            before = progress.total_steps - progress.iteration
            self._context.writers.step_values(progress.epoch, before, values.steps, values.keys, values.values)

    def _line(self, means: Any, interval: Any, position: Any) -> Any:
        """Return what makes the text: a thread may do so later, from what is handed in, when the run is further on."""
        batches, at = self._runner.max_iteration, (position["epoch"], position["iteration"], position["updates"])
        return partial(
            train_line,
            means,
            interval,
            position,
            max_epoch=self._length.max_epoch,
            max_iteration=batches,
            steps_left=self._length.steps_left(*at, batches),
            samples_per_step=self._samples_per_step,
            device=self._context.world.device,
        )

    def write_rest(self) -> None:
        """Write the numbers of the last steps, after the last log line, so that the curve has all of an epoch.

        Raises:
            NonFiniteError: when the loss, or a weight, is not finite.
            ReplicaError: when the processes' weights differ.
        """
        progress, (means, probed) = self._context.progress, self._read(0, self._finite.probe())
        self._check_finite(means, probed)
        if progress.iteration % self.every:
            step = self._context.counters.step_of("train")
            self._context.writers.scalars("train", means, step, **self._position())

    def close(self) -> dict[str, Any]:
        """Write the line and the row of the epoch, and return its means over all processes."""
        context, progress, clock = self._context, self._context.progress, self._runner.clock
        means = with_skipped(self._meters.means(), self._meters)
        summary_dict = self._metrics.beside(means)
        self._skips.limit.close()
        context.times.add(clock)
        if not self._ending.is_cut:
            context.untrained.tell()
        context.hints.tell(startup_hint(self._loader.loader, clock.first_data_s, clock.elapsed_s()))
        in_line = self._metrics.in_line(summary_dict)
        text = get_log_string(in_line, progress.epoch, self._length.max_epoch, time_dict=clock.means())
        self._trainer.log(f"[Train] {text}{self._metrics.table(summary_dict)}")
        write = context.writers.scalars if len(summary_dict) > len(means) else context.writers.row  # means are no curve
        write("train_epoch", summary_dict, step=context.counters.step_of("train"), **context.counters.row())
        return summary_dict

    def _where(self) -> str:
        return f"epoch {self._context.progress.epoch}, iteration {self._context.progress.iteration}"

    def _position(self) -> dict[str, Any]:
        counters = {"iteration": self._context.progress.iteration, **self._context.counters.row()}
        return counters | {name: float(rate) for name, rate in self._rates.items()}
