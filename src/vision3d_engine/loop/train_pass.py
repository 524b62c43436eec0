"""One pass over the training data: all that lives as long as it, and the sequence of one iteration."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch

from vision3d_engine.core.seeding import StepSeeds
from vision3d_engine.data.prefetcher import Prefetcher
from vision3d_engine.data.resumable_loader import Place, ResumableLoader
from vision3d_engine.debug.finite import DebugChecks
from vision3d_engine.loop.between_updates import BetweenUpdates
from vision3d_engine.loop.captures import Captures
from vision3d_engine.loop.context import PassContext
from vision3d_engine.loop.hooks import led
from vision3d_engine.loop.joining import Joining
from vision3d_engine.loop.metric_weights import weights_by, where_finite, with_further
from vision3d_engine.loop.result_checks import ResultChecker
from vision3d_engine.loop.runner import Runner
from vision3d_engine.loop.skipping import TrainSkips, let_go_of, refuse_none
from vision3d_engine.loop.step_marks import StepMarks
from vision3d_engine.loop.train_log import TrainLog
from vision3d_engine.loop.uneven_ranks import UnevenRanks
from vision3d_engine.metrics.running_means import RunningMeans
from vision3d_engine.optim.named_optimizers import optimizers_of
from vision3d_engine.update.ema import NoAverage
from vision3d_engine.update.held import clear_gradients
from vision3d_engine.update.loss_unit import LossUnit
from vision3d_engine.update.update import Update
from vision3d_engine.update.watched import WatchedUpdate
from vision3d_engine.update.window_weight import WindowWeight

Batches = Iterable[tuple[Place, Any]]

_WEIGHTS = ("loss_weight", "metric_weight")
_MOMENTS = ("before_train_step", "after_backward", "after_train_step")


class TrainPass:
    """Trains once over the batches of an epoch, or over what is left of them.

    Args:
        trainer: whose steps run; its hooks, update and schedule act in the order of the pipeline.
        context: what all passes share.
        loader: the training data.
        lengths: batches of the epoch of each process in rank order; None where it is not known.
        read: returns this process's batches of the epoch from a number on, counted from 0.
        seeds: seeds what each step draws.
        average: follows the updates (`update.ema`).
        between: what may happen between updates.
    """

    phase = "train"
    PARTS: ClassVar = {"_step": "forward", **dict.fromkeys(("_before_step", "_after_backward", "_after_step"), "hooks")}

    def __init__(  # noqa: PLR0913  what a pass is made of
        self,
        trainer: Any,
        context: PassContext,
        loader: ResumableLoader,
        *,
        lengths: Sequence[int | None],
        read: Callable[[int], Batches],
        seeds: StepSeeds,
        average: NoAverage,
        between: BetweenUpdates,
    ) -> None:
        self._trainer, self._context, self._progress = trainer, context, context.progress
        self._epoch, loader.counts_samples = context.progress.epoch, context.progress.counts_samples
        context.counters.follow(loader)
        self._read, self._seeds, self._seeds_steps = read, seeds, loader.is_positioned
        takes_turns = len(optimizers_of(trainer.optimizer)) > 1
        self._uneven = UnevenRanks(lengths, context.world.rank, _way_to_join(context, takes_turns))
        self._checks = ResultChecker("train_step")
        self._equal_weights, self._weighs_all_alike = map(context.hooks.is_default, _WEIGHTS)
        step = context.precision.casting(self._train_step)
        in_parts = takes_turns or context.settings.on_oom == "skip"  # behind a backward pass that has not failed
        self._step = context.parallel.exchanging(step, trainer.model, trainer.optimizer, in_parts=in_parts)
        self._update = _new_update(trainer, context, average, equal_weights=self._equal_weights)
        self._before_step, self._after_backward, self._after_step = map(context.hooks.of, _MOMENTS)
        self._observers: list[Callable[..., None]] = []
        self.metrics = context.metrics.new_pass()
        self._iteration = self.metrics.around(self._iterate, self._progress, self._uneven)
        self._add_own_listeners()
        self._between, self._ending, self._weights = between, between.ending, None
        prefetcher = Prefetcher(context.world.device, not loader.is_stateful, context.host_tensors)
        self.meters = RunningMeans(context.counters.sum_up, keeps_steps=context.world.is_main)
        self._skips = TrainSkips(trainer, context, loader, self.meters, self._uneven.walked)
        bar = context.progress_bar(f"epoch {self._epoch}{f'/{trainer.max_epoch}' if trainer.max_epoch else ''}")
        parts: dict[str, Any] = {"prefetcher": prefetcher, "bar": bar, "where": self._skips.batches.where}
        self.runner = Runner("train", self._iteration, self._after_iteration, **parts)
        parts = {"runner": self.runner, "meters": self.meters, "metrics": self.metrics, "skips": self._skips}
        parts |= {"ending": self._ending, "marks": StepMarks(self, self._update)}
        self._log = TrainLog(trainer, context, loader, **parts)
        self._seen_at_update = (context.progress.total_steps, context.progress.own_samples)

    def _add_own_listeners(self) -> None:
        """Let what this pass does only sometimes follow the user's hooks, so that it costs other passes nothing."""
        if self._context.settings.debug:
            capsules = self._trainer._run.autosave.capsules  # noqa: SLF001  the engine's own
            skipped = capsules.keep_skipped if self._context.precision.is_scaled else None
            checks = DebugChecks(self._trainer.model, self._epoch, skipped)
            self._after_backward = [*self._after_backward, checks.check_gradients]
            self._iteration = checks.around(self._iteration)
            self._step = checks.over(self._step) if self._context.settings.nonfinite != "skip" else self._step
        acts: tuple[Any, ...] = (self._step, self._train_step, self._after_backward)
        self._joining = Joining(self._context, self._trainer.model, self._update, self._uneven, *acts)
        if self._joining.needs_dicts:
            self._after_step = [self._joining.keep, *self._after_step]
        if not self._weighs_all_alike:
            self._after_step = [*self._after_step, self._weigh]
        if self._context.settings.nonfinite == "skip":
            self._after_step = [*self._after_step, self._look_at_update]
        for observer in _observers(self._context, self._equal_weights):
            self.look_inside(observer)

    def look_inside(self, observer: Captures | LossUnit) -> None:
        """Let something act around each step from now on, and behind its backward pass before the hooks do."""
        if observer.after_backward not in self._observers:
            self._step = observer.around(self._step)
            self._observers.append(observer.after_backward)
            self._after_backward = led(self._observers, self._after_backward)

    def run(self) -> None:
        """Walk the batches; when a step fails, the counters stand at the last update that was made."""
        try:
            with self._context.metrics.walking(self.metrics):
                if not self._ending.is_cut:  # else a resume closes an epoch that was cut before
                    self._walk()
        except BaseException:
            self._roll_back()
            raise

    def _walk(self) -> None:
        """Walk the batches to the end of the epoch, or of the run."""
        done, self.runner.max_iteration = self._progress.trained, self._uneven.length
        self.metrics.begin_step(follows_update=True)
        clear_gradients(self._trainer.optimizer)
        self._context.precision.begin()
        self._between.begin(self.runner)
        self._log.begin()
        if not self._ending.is_cut:
            self.runner.run(self._uneven.batches(self._read(done), done, self._read), self._uneven.length, done)
        if not (self._progress.is_trained or self._ending.is_cut):
            self._finish()

    def _finish(self) -> None:
        """Make the update of a window that the end has left open, and what comes once an epoch, behind all updates."""
        closed = self._update.close()
        if closed:
            self._count_update(self._progress.iteration)
            self._take_norms(self._progress.iteration)
        self._log.write_rest()
        if closed:
            self._between.follow_schedule(self._progress.iteration)
        self._between.end_schedule()

    def close(self) -> dict[str, Any]:
        """Write the line of the epoch, or of what was trained of it, and return its means."""
        if self._ending.is_cut:
            self._log.write_rest()
        return self._log.close()

    # ------------------------------------------------------------------------------------------- one iteration

    def _iterate(self, iteration: int, data_dict: Any) -> None:
        """One micro-batch: forward, backward and, when its window is full, the update."""
        epoch, trainer, update, progress = self._epoch, self._trainer, self._update, self._progress
        progress.iteration, progress.total_steps = iteration, progress.total_steps + 1
        if self._seeds_steps:
            self._seeds.seed(iteration)
        if iteration > self._uneven.even_until and self._joins(iteration, data_dict):
            return
        progress.own_samples += self.runner.place[2]
        try:
            with update.micro_batch(self.runner.is_last):
                if data_dict is None:
                    refuse_none(data_dict)
                for act in self._before_step:
                    act(epoch, iteration, data_dict)
                loss, output_dict, result_dict = self._step(iteration, data_dict)
                weight = 1 if self._equal_weights else trainer.loss_weight(data_dict, output_dict, result_dict)
                update.backward(loss, weight)
        except self._skips.errors as error:
            self._skip(iteration, data_dict, error)
            return
        update.exchange()
        for act in self._after_backward:
            act(epoch, iteration, data_dict, output_dict, result_dict)
        self._log.note_rates(iteration)
        if update.is_complete:
            update.step()
            self._count_update(iteration)
        for act in self._after_step:
            act(epoch, iteration, data_dict, output_dict, result_dict)
        self._checks.check(result_dict)
        weights = self.runner.place[2] if self._weights is None else self._weights
        if update.norms:
            result_dict, weights = with_further(result_dict, weights, update.take_norms())
        self.meters.update(result_dict, weights, iteration)

    def _weigh(self, _epoch: int, _iteration: int, *dicts: Any) -> None:
        """Ask the user what the results of the step weigh."""
        self._weights = weights_by(self._trainer.metric_weight, self.runner.place[2], *dicts)

    def _look_at_update(self, _epoch: int, iteration: int, _data: Any, _output: Any, results: Any) -> None:
        """Let results weigh nothing whose loss is not finite, and note an update which that may have spoiled."""
        weights = self.runner.place[2] if self._weighs_all_alike else self._weights
        self._weights = where_finite(weights, results.get("loss"))
        self.metrics.undo_unless_finite(results.get("loss"))
        if norms := self._update.norms:
            self._skips.updates.note(iteration, self.runner.place, [is_finite for _, is_finite in norms.values()])

    def _count_update(self, iteration: int) -> None:
        """Count an update; a resume goes on with the batch after this one."""
        self._progress.updates += 1
        self._progress.trained, self._progress.place = iteration, self.runner.place
        self._seen_at_update = (self._progress.total_steps, self._progress.own_samples)

    def _train_step(self, iteration: int, data_dict: Any) -> tuple[Any, Any, dict[str, Any]]:
        """Return the loss of the user's step, and the two dicts that it returned."""
        output_dict, result_dict = self._checks.unpack(self._trainer.train_step(self._epoch, iteration, data_dict))
        loss = self._checks.loss(result_dict) if self._update.is_shared else result_dict.get("loss")
        return loss, output_dict, result_dict

    def make_update(self, name: str, loss: torch.Tensor, weight: Any) -> None:
        """Update one optimizer alone, in the midst of a step."""
        self._update.make(name, loss, weight)

    def _after_iteration(self, iteration: int) -> None:
        """Write the log line when one is due; after an update move the schedule on, and end the run, save or stop."""
        if iteration % self._log.every == 0:
            self._log.write(iteration)
        if not self._update.is_complete:
            return
        self._between.follow_schedule(iteration)
        if not self.runner.is_last:
            self._between.act(self.runner)

    # ------------------------------------------------------------------------------------------- joining others

    def _joins(self, iteration: int, data_dict: Any) -> bool:
        """Tell whether this process has joined in a step, since it had no batch of its own left."""
        update = self._update
        update.mean_weight = self._uneven.mean_weight(iteration)
        if is_joining := self._uneven.is_joining(iteration):
            with update.micro_batch(self.runner.is_last):
                self._joining.add_nothing(iteration, data_dict)
            self._close_without_batch(iteration, data_dict)
        return is_joining

    def _close_without_batch(self, iteration: int, data_dict: Any) -> None:
        """Make the update, if the micro-batch at hand ends its window, to which this process adds nothing there."""
        self._log.note_rates(iteration)
        if self._update.is_complete:
            self._joining.act_on_gradients(self._epoch, iteration, data_dict)
            self._update.step()
            self._count_update(iteration)
        self._take_norms(iteration)

    def _take_norms(self, iteration: int) -> None:
        """Take in the norms of an update that no step of this process has made complete."""
        if norms := self._update.take_norms():
            self._skips.updates.note(iteration, self.runner.place, [is_finite for _, is_finite in norms.values()])
        self.meters.update(*with_further({}, 1, norms), iteration)

    # ------------------------------------------------------------------------------------------- leaving out

    def _skip(self, iteration: int, data_dict: Any, error: Exception) -> None:
        """Leave a batch out: the update of its window is that of the other batches, here and on other processes."""
        let_go_of(error, self._context.world.device)
        self.metrics.undo()
        self._skips.batches.note(iteration, self.runner.place, error)
        self._update.skip()
        self._close_without_batch(iteration, data_dict)

    # ------------------------------------------------------------------------------------------- ends

    def _roll_back(self) -> None:
        """Let counters, metrics and schedule stand at the last update, from which another `run` goes on."""
        if self._progress.total_steps > self._seen_at_update[0]:
            self.metrics.roll_back()
        self._progress.total_steps, self._progress.own_samples = self._seen_at_update
        self._between.roll_back()


def _observers(context: PassContext, has_equal_weights: bool) -> Iterator[Captures | LossUnit]:
    """Yield what looks into steps: where losses are multiplied before they are walked back, or modules captured."""
    if not has_equal_weights or context.precision.is_scaled or not context.hooks.is_default("backward"):
        yield LossUnit(context.endpoints)
    if context.captures.is_used:
        yield context.captures


def _new_update(trainer: Any, context: PassContext, average: NoAverage, *, equal_weights: bool) -> Update:
    settings, parallel = context.settings, context.parallel
    is_divided = settings.grad_acc_reduction == "mean"
    weights = None if equal_weights else WindowWeight(parallel, context.progress if is_divided else None)
    parts = (trainer, settings, parallel, context.precision, weights, average.follower())
    observers = [*context.parameter_statistics.observers(trainer), *context.untrained.observers(trainer)]
    return WatchedUpdate(*parts, observers=observers) if observers else Update(*parts)


def _way_to_join(context: PassContext, takes_turns: bool) -> str:
    """Return the setting ``trainer.uneven``; where zeros are not enough to join, a process repeats its last batch.

    They are not where only the step itself knows which optimizers it updates.
    """
    mode = context.settings.uneven
    return "repeat" if mode == "join" and (takes_turns or not context.parallel.joins_with_zeros) else mode
