"""One pass over the training data: all that lives as long as it, and the sequence of one iteration."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from vision3d_engine.core.seeding import StepSeeds
from vision3d_engine.data.prefetcher import Prefetcher
from vision3d_engine.data.resumable_loader import Place, ResumableLoader
from vision3d_engine.debug.finite import check_gradients
from vision3d_engine.loop.context import PassContext
from vision3d_engine.loop.metric_weights import weights_by, with_further
from vision3d_engine.loop.result_checks import ResultChecker
from vision3d_engine.loop.runner import Runner
from vision3d_engine.loop.train_log import TrainLog
from vision3d_engine.loop.uneven_ranks import UnevenRanks
from vision3d_engine.metrics.running_means import RunningMeans
from vision3d_engine.optim.named_optimizers import optimizers_of
from vision3d_engine.update.ema import NoAverage
from vision3d_engine.update.update import Update, clear_gradients
from vision3d_engine.update.window_weight import WindowWeight

Batches = Iterable[tuple[Place, Any]]


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
        autosave: says when to save, and acts on requests to save or stop (`run.autosave.Autosave`).
        ending: says at which update the run ends (`run.ending.Ending`).
        schedule_steps: what moves schedules on after each ``"update"``, and at the end of the ``"epoch"``, if anything.
    """

    phase = "train"

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
        autosave: Any,
        ending: Any,
        schedule_steps: Mapping[str, Callable[[], object]],
    ) -> None:
        self._trainer, self._context, self._progress = trainer, context, context.progress
        self._epoch = context.progress.epoch
        loader.counts_samples = context.progress.counts_samples
        self._read, self._seeds, self._seeds_steps = read, seeds, loader.is_positioned
        takes_turns = len(optimizers_of(trainer.optimizer)) > 1
        self._uneven = UnevenRanks(lengths, context.world.rank, _way_to_join(context, takes_turns))
        self._checks = ResultChecker("train_step")
        self._equal_weights = context.hooks.is_default("loss_weight")
        step = self._cast_step if context.settings.precision != "fp32" else self._train_step
        self._step = context.parallel.exchanging(step, trainer.model, trainer.optimizer, in_parts=takes_turns)
        self._update = self._new_update(average)
        self._before_step = context.hooks.of("before_train_step")
        self._after_backward = context.hooks.of("after_backward")
        self._after_step = context.hooks.of("after_train_step")
        self._last_dicts: tuple[Any, ...] = ()
        self._weights: Any = None
        self._add_own_listeners()
        self._autosave, self._sync_point = autosave, autosave.agreement.sync_point
        self._ending = ending
        self._schedule_steps, self._step_schedule = schedule_steps, schedule_steps.get("update")
        self._scheduled_at = context.progress.trained
        prefetcher = Prefetcher(context.world.device, not loader.is_stateful, context.host_tensors)
        self.meters = RunningMeans(context.sum_up)
        self.runner = Runner("train", self._iterate, self._after_iteration, prefetcher=prefetcher)
        self._log = TrainLog(trainer, context, loader, runner=self.runner, meters=self.meters, ending=ending)
        self._steps_at_update = context.progress.total_steps

    def _new_update(self, average: NoAverage) -> Update:
        trainer, settings, parallel = self._trainer, self._context.settings, self._context.parallel
        is_divided = settings.grad_acc_reduction == "mean"
        weights = None if self._equal_weights else WindowWeight(parallel, self._progress if is_divided else None)
        return Update(trainer, settings, parallel, self._context.precision, weights, average.follower())

    def _add_own_listeners(self) -> None:
        """Let what this pass does only sometimes follow the user's hooks, so that it costs other passes nothing."""
        if self._context.settings.debug:
            self._after_backward = [*self._after_backward, self._check_gradients]
        if self._uneven.last_own is not None:
            self._after_step = [self._keep_last, *self._after_step]
        if not self._context.hooks.is_default("metric_weight"):
            self._after_step = [*self._after_step, self._weigh]

    def run(self) -> None:
        """Walk the batches; when a step fails, the counters stand at the last update that was made."""
        try:
            if not self._ending.is_cut:  # else a resume closes an epoch that was cut before
                self._walk()
        except BaseException:
            self._roll_back()
            raise

    def _walk(self) -> None:
        """Walk the batches to the end of the epoch, or of the run."""
        done = self._progress.trained
        clear_gradients(self._trainer.optimizer)
        self._context.precision.begin()
        self.runner.run(self._uneven.batches(self._read(done), done, self._read), self._uneven.length, done)
        if not (self._progress.is_trained or self._ending.is_cut):
            self._finish()

    def _finish(self) -> None:
        """Make the update of a window that the end has left open, and what comes once an epoch, behind all updates."""
        closed = self._update.close()
        if closed:
            self._count_update(self._progress.iteration)
        self._log.write_rest()
        if closed and self._step_schedule is not None:
            self._follow_schedule(self._progress.iteration)
        if "epoch" in self._schedule_steps:
            self._schedule_steps["epoch"]()

    def close(self) -> dict[str, Any]:
        """Write the line of the epoch, or of what was trained of it, and return its means."""
        if self._ending.is_cut:
            self._log.write_rest()
        return self._log.close()

    # ------------------------------------------------------------------------------------------- one iteration

    def _iterate(self, iteration: int, data_dict: Any) -> None:
        """One micro-batch: forward, backward and, when its window is full, the update."""
        epoch, trainer, update, progress = self._epoch, self._trainer, self._update, self._progress
        progress.iteration = iteration
        progress.total_steps += 1
        if self._seeds_steps:
            self._seeds.seed(iteration)
        if iteration > self._uneven.even_until:
            update.mean_weight = self._uneven.mean_weight(iteration)
            if self._uneven.is_joining(iteration):
                self._join(iteration, data_dict)
                return
        for act in self._before_step:
            act(epoch, iteration, data_dict)
        with update.micro_batch(self.runner.is_last):
            loss, output_dict, result_dict = self._step(iteration, data_dict)
            weight = 1 if self._equal_weights else trainer.loss_weight(data_dict, output_dict, result_dict)
            update.backward(loss, weight)
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
        self.meters.update(result_dict, weights)

    def _check_gradients(self, epoch: int, iteration: int, data_dict: Any, *_dicts: Any) -> None:
        check_gradients(self._trainer.model, data_dict, epoch, iteration, self._context.debug_folder)

    def _weigh(self, _epoch: int, _iteration: int, *dicts: Any) -> None:
        """Ask the user what the results of the step weigh."""
        self._weights = weights_by(self._trainer.metric_weight, self.runner.place[2], *dicts)

    def _count_update(self, iteration: int) -> None:
        """Count an update; a resume goes on with the batch after this one."""
        self._progress.updates += 1
        self._progress.trained, self._progress.place = iteration, self.runner.place
        self._steps_at_update = self._progress.total_steps

    def _train_step(self, iteration: int, data_dict: Any) -> tuple[Any, Any, dict[str, Any]]:
        """Return the loss of the user's step, and the two dicts that it returned."""
        output_dict, result_dict = self._checks.unpack(self._trainer.train_step(self._epoch, iteration, data_dict))
        loss = self._checks.loss(result_dict) if self._update.is_shared else result_dict.get("loss")
        return loss, output_dict, result_dict

    def _cast_step(self, iteration: int, data_dict: Any) -> tuple[Any, Any, dict[str, Any]]:
        """Do so where operations are cast."""
        with self._context.precision.autocast():
            return self._train_step(iteration, data_dict)

    def make_update(self, name: str, loss: torch.Tensor, weight: Any) -> None:
        """Update one optimizer alone, in the midst of a step."""
        self._update.make(name, loss, weight)

    def _after_iteration(self, iteration: int) -> None:
        """Write the log line when one is due; after an update move the schedule on, and end the run, save or stop."""
        if iteration % self._log.every == 0:
            self._log.write(iteration)
        if not self._update.is_complete:
            return
        if self._step_schedule is not None:
            self._follow_schedule(iteration)
        if self.runner.is_last:
            return
        if self._progress.updates >= self._ending.due_at:
            self._cut()
            return
        request = self._sync_point()
        if request is not None or self._progress.total_steps >= self._autosave.due_at:
            self._autosave.act(request)

    def _cut(self) -> None:
        """End the pass in mid-epoch; what is saved now is what a run that is extended goes on from."""
        self._ending.cut()
        self._autosave.after_training()
        self.runner.cut()

    # ------------------------------------------------------------------------------------------- joining others

    def _join(self, iteration: int, data_dict: Any) -> None:
        """Join in the update of other processes without weight; it shows in no mean.

        Of the hooks only `after_backward` acts, when a window ends, with the dicts of the last step that was this
        process's own: what it does to the gradients of the update (clips them) must happen on all processes.
        """
        update = self._update
        self._log.note_rates(iteration)
        with update.micro_batch(self.runner.is_last):
            update.is_joining = True
            update.backward(self._joining_loss(iteration, data_dict), 0)
        if update.is_complete and self._after_backward:
            if not self._last_dicts:
                self._make_last_again(data_dict)
            for act in self._after_backward:
                act(self._epoch, iteration, *self._last_dicts)
        if update.is_complete:
            update.step()
            self._count_update(iteration)

    def _joining_loss(self, iteration: int, data_dict: Any) -> torch.Tensor:
        if not self._uneven.repeats:
            return self._context.parallel.zero_loss()
        loss, *results = self._step(iteration, data_dict)
        self._last_dicts = (data_dict, *results)
        return loss

    def _keep_last(self, _epoch: int, iteration: int, *dicts: Any) -> None:
        """Keep the dicts of the last step of this process, as they are before the user's hooks."""
        if iteration == self._uneven.last_own:
            self._last_dicts = tuple(copy.copy(each) for each in dicts)

    def _make_last_again(self, data_dict: Any) -> None:
        """Make the dicts of the last own step after a resume in the midst of joining; no buffer keeps a trace of it."""
        buffers = [(buffer, buffer.clone()) for buffer in self._trainer.model.buffers()]
        _, *results = self._train_step(self._uneven.last_own or 1, data_dict)
        self._last_dicts = (data_dict, *results)
        for buffer, before in buffers:
            buffer.copy_(before)

    # ------------------------------------------------------------------------------------------- ends

    def _follow_schedule(self, iteration: int) -> None:
        self._scheduled_at = iteration
        self._step_schedule()  # pyright: ignore[reportOptionalCall]

    def _roll_back(self) -> None:
        """Let the counters and the schedule stand at the last update, from which another `run` goes on."""
        self._progress.total_steps = self._steps_at_update
        if self._step_schedule is not None and self._scheduled_at < self._progress.trained:
            self._step_schedule()


def _way_to_join(context: PassContext, takes_turns: bool) -> str:
    """Return the setting ``trainer.uneven``; where zeros are not enough to join, a process repeats its last batch.

    They are not where only the step itself knows which optimizers it updates.
    """
    mode = context.settings.uneven
    return "repeat" if mode == "join" and (takes_turns or not context.parallel.joins_with_zeros) else mode
