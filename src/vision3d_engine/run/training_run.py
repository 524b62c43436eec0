"""The sequence of a training run: check the folder, load, take it over, train and validate epoch by epoch, end."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from vision3d_engine.checkpoint.manager import CheckpointManager
from vision3d_engine.core.durations import parse_duration
from vision3d_engine.core.errors import CheckpointError, NonFiniteError, WorkerError
from vision3d_engine.data.loader_cache import LoaderCache
from vision3d_engine.data.loader_sets import check_sets, sets_of
from vision3d_engine.data.resumable_loader import ResumableLoader
from vision3d_engine.loop.context import PassContext
from vision3d_engine.loop.epoch_time import tell_times
from vision3d_engine.optim.lr_scaling import RateScaling
from vision3d_engine.optim.named_optimizers import optimizers_of
from vision3d_engine.optim.optimizer import choose_kernels, refuse_foreign
from vision3d_engine.run.autosave import Autosave
from vision3d_engine.run.closing import Closing
from vision3d_engine.run.data_checks import check_alike, check_data
from vision3d_engine.run.ending import Ending
from vision3d_engine.run.judging import Judging
from vision3d_engine.run.resume_state import ResumeState
from vision3d_engine.run.resuming import Resuming
from vision3d_engine.run.run_folder import RunFolder
from vision3d_engine.run.run_record import write_record
from vision3d_engine.run.scheduling import Scheduling
from vision3d_engine.run.session import Session
from vision3d_engine.run.stopping import StopRequests
from vision3d_engine.run.validations import Validations
from vision3d_engine.update.ema import choose_average


class TrainingRun:
    """Runs a trainer: what surrounds its passes, and the order of its epochs.

    Args:
        trainer: whose ``train_epoch``, ``val_epoch``, ``save``, ``load`` and parts are used, as they are at the time.
        session: settings, processes, folders, log.
        context: what its passes share.
        loaders: what reads its loaders.

    Attributes:
        checkpoints: the files of the run.
        average: the moving average of the weights, or none.
        resume_state: what a resume restores beside model, optimizer and schedule.
        autosave: when files are written.
        ending: whether the run ends, where, and why.
        scheduling: when schedules step, and how long they are.
        validations: when it is validated.
        is_training: whether an epoch is trained, from its first hook to its last step.
    """

    def __init__(self, trainer: Any, session: Session, context: PassContext, loaders: LoaderCache) -> None:
        settings, folders = context.settings, session.folders
        self._trainer, self._session, self._context = trainer, session, context
        self._progress, self._loaders = context.progress, loaders
        self._folder = RunFolder(folders, context.world.is_main)
        self.average = choose_average(trainer, settings, context.parallel)
        self.checkpoints = CheckpointManager(
            folders.checkpoints,
            settings.save_latest_n_models,
            keep_best=settings.save_best_n_models,
            keep_every=settings.save_every_n_epochs,
            in_background=settings.async_save,
            warn=lambda message: trainer.log(message, level="ERROR"),
            tolerated=(NonFiniteError,) if settings.nonfinite == "ignore" else (),
            parallel=context.parallel,
            weights=self.average.states,
        )
        agreement = context.world.agreement()
        self.ending = Ending(context)
        self.resume_state = ResumeState(trainer, context, self.train_data, self.ending)
        self._resuming = Resuming(trainer, context, folders, self.checkpoints, self.resume_state, self.average)
        self.autosave = Autosave(trainer, context, self.checkpoints, folders.checkpoints, self.resume_state, agreement)
        max_time_s = parse_duration(settings.max_time) if settings.max_time else None
        self._stop_requests = StopRequests(agreement, max_time_s, context.world.started_at)
        self.scheduling = Scheduling(trainer, context)
        self._closing = Closing(trainer, context, folders, self.checkpoints, self.resume_state.clock)
        followers = (self.scheduling, self.autosave, self.ending)
        self._judging = Judging(trainer, context, self.checkpoints, *followers)
        self.validations = Validations(trainer, context, self.average, self.autosave, self.ending, self._judging.check)
        self._rate_scaling = RateScaling(settings.scale_lr)
        self.is_training = self._only_validates = self._starts_anew = False

    # ------------------------------------------------------------------------------------------- data

    def train_data(self) -> ResumableLoader:
        """Return the training data as the engine reads it; a loader that was exchanged during the run is noticed."""
        return self._loaders.get("training", self._trainer.train_loader)

    def val_data(self) -> dict[str | None, ResumableLoader]:
        """Return the validation data as the engine reads it, by the names of its sets; a single loader under None.

        With ``trainer.overfit`` all of it is what is trained on.
        """
        check_sets(self._trainer.val_loader)  # it may have been exchanged
        if self._context.settings.overfit:
            return dict.fromkeys(sets_of(self._trainer.val_loader), self.train_data())
        return self._loaders.get_sets("validation", self._trainer.val_loader)

    # ------------------------------------------------------------------------------------------- the run

    def run(self, only_validation: bool) -> None:
        """Train and validate until the run ends; or validate once and save nothing."""
        self._only_validates = only_validation
        self.validations.check_parts(only_validation, self.checkpoints.metrics, self.scheduling.metrics)
        where = self._trainer._where  # noqa: SLF001  the engine's own
        with self._session.running(where), self._surroundings(where):
            self._session.check_arguments()
            if not only_validation:
                self._check_folder()
            self._prepare()
            if not only_validation:
                self._take_over_folder()
            self._context.fire("before_train")
            self.validations.make_alone() if only_validation else self._train_or_stop()
            self._context.fire("after_train")
            if not only_validation and self.ending.forget_request():
                self.autosave.note_ending(self.ending.closed_state())

    @contextlib.contextmanager
    def _surroundings(self, where: Callable[[], str]) -> Iterator[None]:
        """Hold the folder, save, and notice signals, requests and failures of other processes."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.ending.running())
            if not self._only_validates:
                stack.enter_context(self._closing.telling())
                stack.enter_context(self._context.profiled.running())
                stack.enter_context(self._folder.locked())
                stack.enter_context(self.autosave.running())
                stack.enter_context(self.autosave.agreement.listening(self._context.logger.warn))
                stack.enter_context(self._stop_requests.listening())
            stack.enter_context(self._session.watching(where))
            yield

    def _check_folder(self) -> None:
        """Refuse a folder that another run has used, and one without space."""
        self._starts_anew = self._resuming.starts_anew()
        if self._starts_anew and not self._context.settings.overwrite:
            self._folder.refuse_used()
        self.checkpoints.wait()
        self._folder.tidy(self.average.states(self._trainer.model))

    def _take_over_folder(self) -> None:
        """Put aside, and cut back, what this run replaces; nothing is lost as long as anything can still be refused."""
        self._context.world.gather(None)  # all processes have read what they load
        if self._starts_anew:
            self._folder.put_old_aside(partial(self._trainer.log, level="WARNING"))
            self._context.writers.start_anew()
        self._resuming.put_damaged_aside()
        self._context.writers.take_over()
        write_record(self._session, self._trainer, self._loaders.by_title())

    def _prepare(self) -> None:
        """Check what can be checked before the first step, and load what the command line asks for."""
        trainer = self._trainer
        sets = self.val_data() if self._only_validates or not self.validations.is_off else {}
        check_alike(self._context.world, validation_sets=tuple(sets), metrics=self._context.metrics.kinds())
        check_data(self.train_data(), sets, self._context.world, partial(trainer.log, level="WARNING"))
        refuse_foreign(optimizers_of(trainer.optimizer), trainer.model)
        self.scheduling.tell_lengths()
        self.ending.early_stopping.prepare(self.checkpoints.metrics)
        for note in filter(None, (self.train_data().note, *self.resume_state.unsaved.with_state())):
            trainer.log(note)
        self.resume_state.try_out(optimizer=trainer.optimizer, scheduler=trainer.scheduler)
        is_wanted, is_scaled = self._context.settings.fused_optimizer, self._context.precision.is_scaled
        for message, level in choose_kernels(optimizers_of(trainer.optimizer), trainer.model, is_wanted, is_scaled):
            trainer.log(message, level=level)
        self._scale_rates()
        self._resuming.start()
        self._context.counters.check(self.train_data())
        self.scheduling.say_what_does_not_fit()
        self._context.hooks.bind()
        trainer.set_train_mode()
        self.resume_state.unsaved.note()

    def _scale_rates(self) -> None:
        trainer = self._trainer
        if said := self._rate_scaling.apply(trainer.optimizer, trainer.scheduler, self._context.world.size):
            trainer.log(said)

    def load(self, filename: str) -> None:
        """Load a checkpoint with all parts that it holds, and go on from its moment.

        Raises:
            CheckpointError: while an epoch is trained, whose end would be counted as that of the loaded one.
        """
        if self.is_training:
            message = (
                f"load('{filename}') in the training of epoch {self._progress.epoch}, whose rest would be trained on "
                "top of it. Call it in before_train, after_train_epoch or after_val_epoch, or before run(); for the "
                "weights alone call load_weights()"
            )
            raise CheckpointError(message)
        self.scheduling.tell_lengths()
        self._scale_rates()  # first: the rates of a checkpoint are those of its run, whatever the processes now
        self._resuming.load(filename)
        self.autosave.restart_cadence()

    def _train_or_stop(self) -> None:
        try:
            self._train()
        except WorkerError:
            self.autosave.stop_without_data()
            raise

    def _train(self) -> None:
        """Train and validate epoch by epoch, until the run ends."""
        has_trained = self.ending.goes_on()
        self._context.times.begin()
        if has_trained:
            self.validations.before_training()
        goes_on = has_trained and self.ending.goes_on()
        while goes_on:
            goes_on = self._train_and_validate()
        self._context.untrained.close()
        if text := self.ending.text(has_trained):
            self._trainer.log(text)

    def _train_and_validate(self) -> bool:
        """Train and validate an epoch, each maybe a loop of the user's own; return whether another one follows."""
        trainer, progress = self._trainer, self._progress
        progress.open_epoch()
        if not progress.is_trained or progress.trained > 0:  # else a loop of the user's own has trained already
            self._context.metrics.forget_passes()
            trainer.train_epoch()
        self.ending.refuse_endless()
        self.close_training()
        trainer.save(f"epoch-{progress.epoch}.pth")
        if self.validations.is_due_after_epoch():
            self.validations.make()
        goes_on = self._close_epoch()
        self._context.writers.flush()
        self._judging.check()
        self.autosave.stop_if_asked()
        return goes_on

    def _close_epoch(self) -> bool:
        """Save the end of an epoch, and return whether another one follows; one that was cut stays open."""
        tell_times(self._context, self._trainer)
        if self.ending.is_cut:
            self.autosave.note_ending(self.ending.closed_state())
            return False
        self._progress.is_open = False
        self.resume_state.close_epoch()
        goes_on = self.ending.goes_on()
        self.autosave.after_epoch(is_last=not goes_on)
        return goes_on

    def open_training(self) -> None:
        """Act before an epoch is trained; what a resume goes on with is as it was when it was saved."""
        self._context.fire("before_train_epoch", self._progress.epoch)
        self._resuming.restore_again()

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Know that an epoch is trained while a block runs."""
        self.is_training = True
        try:
            yield
        finally:
            self.is_training = False

    def close_training(self) -> None:
        """Save when an epoch's training is done, before it is validated; once an epoch.

        A pass that was cut has saved itself in mid-epoch.
        """
        if not (self._progress.is_trained or self.ending.is_cut):
            self._progress.is_trained = True
            self.autosave.save_or_stop()

    # ------------------------------------------------------------------------------------------- validation

    def after_val_iteration(self, iteration: int) -> None:
        """Stop if asked to; one process of several goes on to the end, where the others wait for it."""
        if self._context.world.size == 1 and not self._only_validates:
            self.autosave.stop_if_asked()

    def judge(self, summary_dict: dict[str, Any]) -> None:
        """Let follow what follows from the numbers of a validation."""
        self._judging.judge(summary_dict, self._only_validates)
