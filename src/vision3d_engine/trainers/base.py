"""The trainer that both kinds of training share: what a user registers, overrides and runs."""

import abc
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch.optim.lr_scheduler import ReduceLROnPlateau

from vision3d_engine.checkpoint.manager import CheckpointManager
from vision3d_engine.checkpoint.parts import load_weights
from vision3d_engine.core.durations import parse_duration
from vision3d_engine.core.errors import DataError, NonFiniteError, RegistrationError, ResultError, did_you_mean, listed
from vision3d_engine.core.tree import describe
from vision3d_engine.data.resumable_loader import ResumableLoader, refuse_shared_iterator
from vision3d_engine.distributed.parallel.choose import choose_parallel
from vision3d_engine.logs.log_line import get_log_string
from vision3d_engine.loop.eval_pass import EvalPass
from vision3d_engine.loop.hooks import TRAIN_HOOKS
from vision3d_engine.loop.result_checks import as_numbers
from vision3d_engine.loop.train_pass import Batches, TrainPass
from vision3d_engine.optim.lr_scaling import RateScaling
from vision3d_engine.optim.optimizer import prefer_fused
from vision3d_engine.run.autosave import Autosave
from vision3d_engine.run.engine import Engine
from vision3d_engine.run.resume_state import ResumeState, has_state
from vision3d_engine.run.resuming import Resuming
from vision3d_engine.run.run_folder import RunFolder
from vision3d_engine.run.run_record import write_record
from vision3d_engine.run.session import Session
from vision3d_engine.run.stopping import StopRequests
from vision3d_engine.trainers.hooks import TrainHooks
from vision3d_engine.update.update import clear_gradients

_OPTIMIZER = ("step", "zero_grad", "param_groups", "state_dict", "load_state_dict")
_SCHEDULER = ("step", "state_dict", "load_state_dict")


class BaseTrainer(Engine, TrainHooks, abc.ABC):
    """Trains a model: subclass `EpochBasedTrainer` or `IterBasedTrainer`, register the parts, write two steps.

    In the constructor call ``super().__init__(cfg)``, then `register_loader`, `register_model`, `register_optimizer`
    and, if wanted, `register_scheduler` and `save_best_model_on_metric`. Implement `train_step` and `val_step`;
    override any other hook. Then call `run`.

    Validation pipeline: before_val_epoch; for each iteration before_val_step, val_step, after_val_step; then
    after_val_epoch, log line and events, best models.

    Files: after each training epoch ``epoch-N.pth`` (metadata and weights), after each validation ``checkpoint.pth``
    (optimizer, schedule and selection too) and ``best_METRIC.pth`` for each metric that improved.

    Args:
        cfg: settings of any kind (dict, EasyDict, OmegaConf, dataclass, Namespace, pydantic, None for defaults); only
            ``exp.*`` and ``trainer.*`` are read.

    Raises:
        ConfigError: for wrong settings or flags, all at once.
        FolderError: when the run folder cannot be written.
    """

    _schedule_follows: ClassVar[str]

    def __init__(self, cfg: Any = None) -> None:
        session = Session(cfg, "train")
        trainer, world, folders = session.settings.trainer, session.world, session.folders
        super().__init__(session, cfg, TRAIN_HOOKS, BaseTrainer, choose_parallel(trainer, world))
        self.optimizer: Any = None
        self.scheduler: Any = None
        self.train_loader: Any = None
        self.val_loader: Any = None
        self._folder = RunFolder(folders, world.is_main)
        self._checkpoints = CheckpointManager(
            folders.checkpoints,
            trainer.save_latest_n_models,
            keep_best=trainer.save_best_n_models,
            keep_every=trainer.save_every_n_epochs,
            in_background=trainer.async_save,
            warn=lambda message: self.log(message, level="ERROR"),
            tolerated=(NonFiniteError,) if trainer.nonfinite == "ignore" else (),
            parallel=self._context.parallel,
        )
        agreement = world.agreement()
        self._resume_state = ResumeState(self._context, self._train_data)
        self._resuming = Resuming(self, self._context, folders, self._checkpoints, self._resume_state)
        self._autosave = Autosave(
            self, self._context, self._checkpoints, folders.checkpoints, self._resume_state, agreement
        )
        self._stop_requests = StopRequests(agreement, parse_duration(trainer.max_time) if trainer.max_time else None)
        self._rate_scaling = RateScaling(trainer.scale_lr)
        self._summary: dict[str, Any] | None = None
        self._only_validates = False

    # ------------------------------------------------------------------------------------------- state

    @property
    def epoch(self) -> int:
        """The epoch that is running, from 1; 0 before the first."""
        return self._progress.epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        self._progress.epoch = value

    @property
    def total_steps(self) -> int:
        """Training batches since the beginning of the run."""
        return self._progress.total_steps

    @total_steps.setter
    def total_steps(self, value: int) -> None:
        self._progress.total_steps = value

    @property
    def max_epoch(self) -> int:
        """Epochs to train."""
        return self._context.settings.max_epoch

    @property
    def grad_acc_steps(self) -> int:
        """Batches whose gradients make one update."""
        return self._context.settings.grad_acc_steps

    @property
    def metadata(self) -> dict[str, int]:
        """What every checkpoint says about its moment: epoch and total_steps."""
        return self._progress.metadata()

    # ------------------------------------------------------------------------------------------- parts

    def register_optimizer(self, optimizer: Any) -> None:
        """Register the optimizer: torch's, or anything with ``step``, ``zero_grad``, ``param_groups``, ``state_dict``.

        The learning rate is used as it is on any number of processes, unless ``trainer.scale_lr`` says otherwise.
        """
        self.optimizer = _with_methods("register_optimizer", optimizer, _OPTIMIZER)

    def register_scheduler(self, scheduler: Any) -> None:
        """Register the learning rate schedule: torch's, anything with ``step`` and ``state_dict``, or None for none.

        Raises:
            RegistrationError: for ReduceLROnPlateau, unless `scheduler_step` is overridden to hand it its metric.
        """
        if isinstance(scheduler, ReduceLROnPlateau) and type(self).scheduler_step is BaseTrainer.scheduler_step:
            message = "ReduceLROnPlateau needs a metric: override scheduler_step() to call self.scheduler.step(metric)"
            raise RegistrationError(message)
        self.scheduler = None if scheduler is None else _with_methods("register_scheduler", scheduler, _SCHEDULER)

    def register_loader(self, train_loader: Iterable[Any], val_loader: Iterable[Any]) -> None:
        """Register the loaders; each yields dicts."""
        for name, loader in (("training", train_loader), ("validation", val_loader)):
            if not hasattr(loader, "__iter__"):
                message = f"register_loader got {describe(loader)} as {name} loader; it must be an iterable of dicts"
                raise RegistrationError(message)
        refuse_shared_iterator(train_loader, val_loader)
        self.train_loader = train_loader
        self.val_loader = val_loader

    def register_state(self, name: str, part: Any) -> Any:
        """Save and restore an object with every ``checkpoint.pth``, and return it: a curriculum, an EMA, a GradScaler.

        Args:
            name: its name in the file and in messages.
            part: anything with ``state_dict`` and ``load_state_dict``; of several processes the main one's is saved.

        Raises:
            RegistrationError: when it has no state, or the name is taken.
        """
        self._resume_state.register(name, part)
        return part

    def add_hook(self, hook: Any) -> Any:
        """Add a `Hook`, or any object with methods named like moments of the run, and return it.

        A hook with ``state_dict`` and ``load_state_dict`` is saved and restored under the name of its class.
        """
        super().add_hook(hook)
        if has_state(hook):
            self._resume_state.register(self._resume_state.free_name(type(hook).__name__), hook)
        return hook

    def save_best_model_on_metric(self, metric: str, largest: bool = True) -> None:
        """Keep the model that is best on a metric of the validation summary as ``best_METRIC.pth``.

        Call it once for each metric.

        Args:
            metric: key of the summary dict, from `val_step` or added in `after_val_epoch`.
            largest: whether more is better.
        """
        self._checkpoints.add_metric(metric, largest)

    # ------------------------------------------------------------------------------------------- to override

    def get_lr(self) -> float:
        """Return the learning rate of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def set_train_mode(self) -> None:
        """Put the model into training mode."""
        self.model.train()

    def set_eval_mode(self) -> None:
        """Put the model into evaluation mode; the engine validates without gradients in any case."""
        self.model.eval()

    def optimizer_step(self) -> None:
        """Make one update and clear the gradients; override to clip gradients or drive several optimizers."""
        self.optimizer.step()
        clear_gradients(self.optimizer)

    def scheduler_step(self) -> None:
        """Move the schedule on by one step."""
        if self.scheduler is not None:
            self.scheduler.step()

    def save(self, filename: str, save_training_states: bool = False) -> None:
        """Save the model into the checkpoint folder, with optimizer, schedule and selection if asked for.

        The state is copied now and written by a thread (``trainer.async_save``); the file appears whole or not at all.
        Only the main process writes; with ``trainer.parallel: fsdp2`` all do, and all must call it.
        """
        self._autosave.save(filename, save_training_states)

    def finish_saving(self) -> Path:
        """Wait until all files are written; return the path of ``checkpoint.pth``, which the first save makes.

        For those who copy it. Only the main process writes, so the others do not wait.

        Raises:
            EngineError: when the last file could not be written.
        """
        return self._autosave.finish()

    def load(self, filename: str) -> None:
        """Load a checkpoint with all parts that it holds, and go on from its moment.

        Args:
            filename: an absolute path, one from where the command runs, or a name in the checkpoint folder.

        Raises:
            CheckpointError: when there is none, it is damaged or unsafe, or belongs to another model or other data.
        """
        self._scale_rates()  # first: the rates of a checkpoint are those of its run, whatever the processes now
        self._resuming.load(filename)
        self._autosave.restart_cadence()

    def load_weights(
        self,
        path: str | Path,
        *,
        include: str | Sequence[str] = (),
        exclude: str | Sequence[str] = (),
        rename: Mapping[str, str] | None = None,
        strict: bool = False,
    ) -> None:
        """Load weights alone, from any code's file, and say what was taken; for fine-tuning.

        Args:
            path: a checkpoint of this engine, a bare state dict, ``{"state_dict": ...}``, ``{"model": ...}`` or a
                safetensors file; ``module.`` and ``_orig_mod.`` in front of names are left out.
            include: patterns (``"encoder.*"``) of names in the file to take; empty takes all.
            exclude: patterns of names in the file to leave out.
            rename: beginnings of names in the file, and what they are in the model.
            strict: raise when something is missing, unexpected or of another shape, instead of saying so.

        Raises:
            CheckpointError: when the file cannot be read, nothing of it fits, or, if strict, not all of it does.
        """
        options: dict[str, Any] = {"include": include, "exclude": exclude, "rename": rename, "strict": strict}
        found, metadata, report = load_weights(self.model, path, self._session.folders.checkpoints, **options)
        self.log(f"loaded the weights of {found}" + "".join(f", {key}: {value}" for key, value in metadata.items()))
        if report:
            self.log("not loaded: " + "; ".join(report), level="WARNING")

    # ------------------------------------------------------------------------------------------- the run

    def run(self, only_validation: bool = False) -> None:
        """Train and validate until ``max_epoch``; or validate once and save nothing.

        Raises:
            EngineError: for a missing part, an empty loader, a wrong result dict, a checkpoint that does not fit, ...
        """
        self._require(train_loader=self.train_loader, val_loader=self.val_loader, model=self.model)
        self._require(optimizer=self.optimizer)
        self._only_validates = only_validation
        with self._session.running(), self._surroundings():
            if not only_validation:
                self._claim_folder()
            self._prepare()
            with self._context.writers.running():
                self._hooks.fire("before_train")
                self._validate_once() if only_validation else self._train()
                self._hooks.fire("after_train")

    @contextlib.contextmanager
    def _surroundings(self) -> Iterator[None]:
        """Hold the folder, save, and notice signals, requests and failures of other processes."""
        with contextlib.ExitStack() as stack:
            if not self._only_validates:
                stack.enter_context(self._folder.locked())
                stack.enter_context(self._autosave.running())
                stack.enter_context(self._autosave.agreement.listening())
                stack.enter_context(self._stop_requests.listening())
            stack.enter_context(self._session.detecting_failures(self._where))
            yield

    def _where(self) -> str:
        """Say where in the run this process is."""
        if self._pass is None:
            return "the preparations"
        return f"{self._pass.phase} epoch {self.epoch}, iteration {self.iteration}"

    def _claim_folder(self) -> None:
        if self._resuming.starts_anew():
            self._folder.claim(self._context.writers, self._context.settings.overwrite)
        self._folder.tidy(self.model)
        write_record(self._session)

    def _prepare(self) -> None:
        """Check what can be checked before the first step, and load what the command line asks for."""
        self._check_loaders()
        self._session.check_arguments()
        if self.scheduler is None:
            self.log("no learning rate schedule is registered: the rate stays as it is")
        parts = [self.model, self.optimizer, self.scheduler, self.train_loader, self.val_loader, *self._hooks.added]
        for note in filter(None, (self._train_data().note, *self._resume_state.forgotten(self, parts))):
            self.log(note)
        if self._context.settings.fused_optimizer and prefer_fused(self.optimizer, self.model):
            self.log("optimizer: fused kernels", level="DEBUG")
        self._scale_rates()
        self._resuming.start()
        self._hooks.bind()
        self.set_train_mode()

    def _scale_rates(self) -> None:
        if said := self._rate_scaling.apply(self.optimizer, self.scheduler, self._context.world.size):
            self.log(said)

    def _check_loaders(self) -> None:
        """Refuse loaders that are empty on all processes."""
        for name, loader in (("training", self._train_data()), ("validation", self._val_data())):
            if set(self._context.world.gather(loader.length)) == {0}:
                message = f"the {name} loader is empty: len(loader) is 0. Check the data set, batch_size and drop_last"
                raise DataError(message)

    def _train_data(self) -> ResumableLoader:
        """Return the training data as the engine reads it; a loader that was exchanged during the run is noticed."""
        return self._loaders.get("train", self.train_loader)

    def _val_data(self) -> ResumableLoader:
        return self._loaders.get("val", self.val_loader)

    def _train(self) -> None:
        progress = self._progress
        while progress.is_open or self.epoch < self.max_epoch:
            progress.open_epoch()
            if not progress.is_trained or progress.trained > 0:  # else a loop of the user's own has trained already
                self.train_epoch()
            self._close_training()
            self.save(f"epoch-{self.epoch}.pth")
            self.val_epoch()
            progress.is_open = False
            self._autosave.after_epoch()
            self._context.writers.flush()
            self._check_metrics()
            self._autosave.stop_if_asked()

    # ------------------------------------------------------------------------------------------- training

    @abc.abstractmethod
    def _open_data(self, loader: ResumableLoader) -> tuple[list[int | None], Callable[[int], Batches]]:
        """Return all processes' numbers of batches of the epoch, and what reads this one's from a number on."""

    def train_epoch(self) -> None:
        """Train for one epoch, or for what is left of it."""
        seeds, epoch = self._context.seed_pass("train"), self.epoch
        self._hooks.fire("before_train_epoch", epoch)
        loader = self._train_data()
        lengths, read = self._open_data(loader)
        has_default_weights = type(self).loss_weight is TrainHooks.loss_weight and "loss_weight" not in vars(self)
        train_pass = self._pass = TrainPass(
            self,
            self._context,
            loader,
            lengths=lengths,
            read=read,
            seeds=seeds,
            autosave=self._autosave,
            equal_weights=has_default_weights,
            schedule_follows=self._schedule_follows,
        )
        with self._resume_state.open_pass(train_pass.meters):
            train_pass.run()
            self._close_training()
        summary_dict = train_pass.close()
        self._hooks.fire("after_train_epoch", epoch, summary_dict)

    def _close_training(self) -> None:
        """Move the schedule on and save, so that a validation that fails costs no training; once an epoch."""
        progress = self._progress
        if progress.is_trained:
            return
        if self._schedule_follows == "epoch" and progress.trained > 0:
            self.scheduler_step()
        progress.is_trained = True
        self._autosave.after_training()

    # ------------------------------------------------------------------------------------------- validation

    def val_epoch(self) -> None:
        """Validate and keep best models."""
        self._summary = self._validate()
        if not self._only_validates:
            self._autosave.save_best(as_numbers(self._summary))

    def _validate_once(self) -> None:
        self.val_epoch()
        self._check_metrics()

    def _validate(self) -> dict[str, Any]:
        """Validate without gradients; return the summary with what `after_val_epoch` added to it."""
        context, epoch = self._context, self.epoch
        context.seed_pass("val")
        self._records.clear()
        self.set_eval_mode()
        self._hooks.fire("before_val_epoch", epoch)
        val_pass = self._pass = EvalPass(self, context, self._val_data(), self._after_val_iteration)
        summary_dict = val_pass.run(context.data_seed("val", epoch), epoch)
        self._hooks.fire("after_val_epoch", epoch, summary_dict)
        numbers = as_numbers(summary_dict)
        text = get_log_string(numbers, epoch=epoch, max_epoch=self.max_epoch, time_dict=val_pass.runner.clock.means())
        self.log(f"[Val] {text}", level="SUCCESS")
        context.writers.scalars("val", numbers, epoch, epoch=epoch, total_steps=self.total_steps)
        self.set_train_mode()
        return summary_dict

    def _after_val_iteration(self, iteration: int) -> None:
        """Stop if asked to; one process of several goes on to the end, where the others wait for it."""
        if self._context.world.size == 1 and not self._only_validates:
            self._autosave.stop_if_asked()

    def _check_metrics(self) -> None:
        """Refuse to go on when a metric that selects best models is never there."""
        summary_dict = self._summary
        if summary_dict is None:  # the user validates by a loop of their own
            return
        for metric in self._checkpoints.metrics:
            if metric not in as_numbers(summary_dict):
                hint = did_you_mean(metric, summary_dict)
                message = (
                    f"save_best_model_on_metric('{metric}'): the validation summary has no number '{metric}'{hint} "
                    f"(it has: {listed(summary_dict)}). Return it from val_step or add it in after_val_epoch"
                )
                raise ResultError(message)


def _with_methods(caller: str, part: Any, names: tuple[str, ...]) -> Any:
    """Return the part if it has all that the engine uses of it."""
    missing = [name for name in names if not hasattr(part, name)]
    if missing:
        message = f"{caller} got {describe(part)}, which has no {listed(missing)}"
        raise RegistrationError(message)
    return part
