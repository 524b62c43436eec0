"""The trainer that both kinds of training share: what a user registers, overrides and runs."""

import abc
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Unpack

import torch

from vision3d_engine.checkpoint.loading import WeightNames, load_weights
from vision3d_engine.core.errors import RegistrationError
from vision3d_engine.core.portable import has_state
from vision3d_engine.core.tree import describe
from vision3d_engine.data.loader_cache import refuse_shared_iterator
from vision3d_engine.data.resumable_loader import ResumableLoader
from vision3d_engine.distributed.parallel.choose import choose_parallel
from vision3d_engine.loop.context import counter, setting
from vision3d_engine.loop.eval_pass import EvalPass
from vision3d_engine.loop.hooks import TRAIN_HOOKS
from vision3d_engine.loop.train_pass import Batches, TrainPass
from vision3d_engine.optim.named_groups import groups_table
from vision3d_engine.optim.named_optimizers import GradientLimits, NamedOptimizers, with_named
from vision3d_engine.optim.schedule import Timing
from vision3d_engine.run.engine import Engine, refuse_second, with_methods
from vision3d_engine.run.session import Session
from vision3d_engine.run.training_run import TrainingRun
from vision3d_engine.trainers.hooks import TrainHooks
from vision3d_engine.update.update import clear_gradients

_OPTIMIZER = ("step", "zero_grad", "param_groups", "state_dict", "load_state_dict")


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
        parallel = choose_parallel(session.settings.trainer, session.world)
        super().__init__(session, cfg, TRAIN_HOOKS, BaseTrainer, parallel)
        self.optimizer: Any = None
        self.scheduler: Any = None
        self.train_loader: Any = None
        self.val_loader: Any = None
        self._run = TrainingRun(self, session, self._context, self._loaders)

    epoch = counter("epoch", "The epoch that is running, from 1; 0 before the first.")
    total_steps = counter("total_steps", "Training batches since the start of the run.")
    max_epoch = setting("max_epoch", "Epochs to train.")
    grad_acc_steps = setting("grad_acc_steps", "Batches whose gradients make one update.")

    @property
    def metadata(self) -> dict[str, int]:
        """What every checkpoint says about its moment: epoch and total_steps."""
        return self._progress.metadata()

    # ------------------------------------------------------------------------------------------- parts

    def register_optimizer(
        self,
        optimizer: Any,
        name: str | None = None,
        *,
        clip_grad_norm: float | None = None,
        clip_grad_value: float | None = None,
    ) -> None:
        """Register the optimizer: torch's, or anything with ``step``, ``zero_grad``, ``param_groups``, ``state_dict``.

        The learning rate is used as it is on any number of processes, unless ``trainer.scale_lr`` says otherwise.

        Args:
            optimizer: the optimizer.
            name: of several, such as ``"generator"``: each is registered under its own, as ``self.optimizer[name]``.
                The loss of a step drives all of them, but for those that the step updates by `update`.
            clip_grad_norm: limit of this one's gradients instead of ``trainer.clip_grad_norm``; needs a name.
            clip_grad_value: the same for ``trainer.clip_grad_value``.

        Raises:
            RegistrationError: when it lacks one of these methods, when it is a second one without a name, and for a
                name that is taken.
        """
        optimizer = with_methods("register_optimizer", optimizer, _OPTIMIZER)
        limits = GradientLimits(clip_grad_norm, clip_grad_value)
        if name is None:
            refuse_second("optimizer", self.optimizer, optimizer)
            _refuse_limits(limits)
            self.optimizer = optimizer
        else:
            self.optimizer = with_named(self.optimizer, name, optimizer, limits)
        if table := groups_table(optimizer, self.model if name is None else None):
            self.log(table if name is None else f"'{name}': {table}")

    def register_scheduler(
        self, scheduler: Any, name: str | None = None, interval: str | None = None, metric: str | None = None
    ) -> None:
        """Register the learning rate schedule: torch's, anything with ``step`` and ``state_dict``, or None for none.

        Args:
            scheduler: the schedule; one of `build_scheduler` knows ``interval`` and ``metric`` from the settings.
            name: of several, such as ``"generator"``: each is registered under its own, as ``self.scheduler[name]``.
            interval: ``"update"`` or ``"epoch"``: after what it steps (default: as the trainer does).
            metric: key of the validation summary, for ReduceLROnPlateau and the like: it steps after each validation
                with that number, which is the main process's.

        Raises:
            RegistrationError: for ReduceLROnPlateau without a metric, unless `scheduler_step` is overridden; for a
                metric that the schedule does not take; for a second schedule without a name, and a name that is taken.
            ConfigError: when its length follows from the run and cannot.
        """
        self._run.scheduling.register(scheduler, name, Timing(interval, metric))

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
            part: anything with ``state_dict`` and ``load_state_dict``, or a generator of torch, numpy or python; of
                several processes the main one's is saved. States may hold numbers, text, tensors, arrays, enums, sets,
                deques, paths and times, in dicts, lists and tuples, and come back as they were.

        Raises:
            RegistrationError: when it has no state, or the name is taken.
        """
        self._run.resume_state.register(name, part)
        return part

    def add_hook(self, hook: Any) -> Any:
        """Add a `Hook`, or any object with methods named like moments of the run, and return it.

        A hook with ``state_dict`` and ``load_state_dict`` is saved and restored under the name of its class.
        """
        super().add_hook(hook)
        if has_state(hook):
            states = self._run.resume_state
            states.register(states.free_name(type(hook).__name__), hook)
        return hook

    def save_best_model_on_metric(self, metric: str, largest: bool = True) -> None:
        """Keep the model that is best on a metric of the validation summary as ``best_METRIC.pth``.

        Call it once for each metric.

        Args:
            metric: key of the summary dict, from `val_step` or added in `after_val_epoch`.
            largest: whether more is better.
        """
        self._run.checkpoints.add_metric(metric, largest)

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

    def backward(self, loss: torch.Tensor, inputs: Sequence[torch.Tensor] | None = None) -> None:
        """Walk a loss back; override it for what autograd can do beside (``create_graph=True``).

        Args:
            loss: the loss of a step, weighted for its window, and scaled with ``trainer.precision: fp16``.
            inputs: the parameters that get gradients; None for all. Only handed in when a step makes an `update`.
        """
        torch.autograd.backward(loss, inputs=inputs)

    def update(self, name: str, loss: torch.Tensor, weight: Any = 1) -> None:
        """Update one optimizer alone, in the midst of `train_step`: for networks that take turns.

        It walks the loss back to this optimizer's parameters alone (others keep the gradients that they have), and in
        the step that ends a window (``trainer.grad_acc_steps``) exchanges them between the processes, divides and clips
        them, and calls `optimizer_step` with the name. The loss that the step returns then drives the other optimizers;
        one that does not require grad, or that was handed in here, drives none. Compute it after this call, since
        weights have changed.

        Args:
            name: under which the optimizer is registered.
            loss: one number that requires grad, a mean.
            weight: number of things that it is a mean over, when batches weigh differently (see `loss_weight`, which
                is about the returned loss).

        Raises:
            RegistrationError: for an unknown name, and outside of a training step.
            ResultError: for a loss that teaches nothing, or twice in a step of a window of several.
        """
        if not isinstance(self.optimizer, NamedOptimizers) or not isinstance(self._pass, TrainPass):
            message = (
                f"update('{name}') is for train_step, with optimizers that are registered by name: "
                "register_optimizer(optimizer, name='discriminator')"
            )
            raise RegistrationError(message)
        self._pass.make_update(name, loss, weight)

    def optimizer_step(self, name: str | None = None) -> None:
        """Make one step of the optimizer and clear its gradients; override to act on the gradients of an update.

        Args:
            name: of the optimizer, where several are registered. An override for a single one may do without.
        """
        optimizer = self.optimizer if name is None else self.optimizer[name]
        self._context.precision.step(optimizer)
        clear_gradients(optimizer)

    def scheduler_step(self) -> None:
        """Move on the schedule; of several by name those that step when the trainer does.

        Called at the trainer's moment, or at the ``interval`` of the only schedule; not for a schedule on a metric.
        """
        if self.scheduler is not None:
            self.scheduler.step()

    def save(self, filename: str, save_training_states: bool = False) -> None:
        """Save the model into the checkpoint folder, with optimizer, schedule and selection if asked for.

        The state is copied now and written by a thread (``trainer.async_save``); the file appears whole or not at all.
        Only the main process writes; with ``trainer.parallel: fsdp2`` all do, and all must call it.
        """
        self._run.autosave.save(filename, save_training_states)

    def finish_saving(self) -> Path:
        """Wait until all files are written; return the path of ``checkpoint.pth``, which the first save makes.

        For those who copy it. Only the main process writes, so the others do not wait.

        Raises:
            EngineError: when the last file could not be written.
        """
        return self._run.autosave.finish()

    def load(self, filename: str) -> None:
        """Load a checkpoint with all parts that it holds, and go on from its moment.

        Args:
            filename: an absolute path, one from where the command runs, or a name in the checkpoint folder.

        Raises:
            CheckpointError: when there is none, it is damaged or unsafe, or belongs to another model or other data.
        """
        self._run.load(filename)

    def load_weights(
        self, path: str | Path, *, strict: bool = False, key: str | None = None, **names: Unpack[WeightNames]
    ) -> None:
        """Load weights alone, from any code's file, and say what was taken; for fine-tuning.

        Args:
            path: a checkpoint of this engine, a bare state dict, a file that holds one under any key, or a safetensors
                file; ``module.`` and ``_orig_mod.`` in front of names are left out.
            strict: raise when something is missing, unexpected or of another shape, instead of saying so.
            key: where the weights are in a file that holds several nests of tensors (``"ema.state_dict"``).
            names: ``include``, ``exclude`` and ``rename``; see `WeightNames`.

        Raises:
            CheckpointError: when no weights are found, several are, or they do not fit (none do; if strict, not all).
        """
        path, folder = self._run.checkpoints.find(path), self._session.folders.checkpoints
        with self._run.average.replacing_weights():
            found, metadata, report = load_weights(self.model, path, folder, strict=strict, key=key, **names)
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
        try:
            self._run.run(only_validation)
        finally:
            self._let_go()

    def _where(self) -> str:
        """Say where in the run this process is."""
        now = self._pass
        return "the preparations" if now is None else f"{now.phase} epoch {self.epoch}, iteration {self.iteration}"

    @abc.abstractmethod
    def _lengths(self) -> list[int | None]:
        """Return all processes' numbers of batches of an epoch, as far as they know; to be called by all of them."""

    @abc.abstractmethod
    def _open_data(self, loader: ResumableLoader) -> tuple[list[int | None], Callable[[int], Batches]]:
        """Return all processes' numbers of batches of the epoch, and what reads this one's from a number on."""

    def train_epoch(self) -> None:
        """Train for one epoch, or for what is left of it."""
        with self._run.training():
            self._train_pass()
        self._context.fire("after_train_epoch", self.epoch, self._pass.close())

    def _train_pass(self) -> None:
        """Walk the training data, or what is left of it."""
        self._run.open_training()
        seeds = self._context.seed_pass("train")
        loader = self._run.train_data()
        lengths, read = self._open_data(loader)
        self._pass = TrainPass(
            self,
            self._context,
            loader,
            lengths=lengths,
            read=read,
            seeds=seeds,
            average=self._run.average,
            autosave=self._run.autosave,
            schedule_steps=self._run.scheduling.steps(),
        )
        with self._run.resume_state.open_pass(self._pass.meters):
            self._pass.run()
            self._run.close_training()

    def val_epoch(self) -> None:
        """Validate and keep best models."""
        self._records.clear()
        self._pass = EvalPass(self, self._context, self._run.val_data(), self._run.after_val_iteration)
        with self._run.average.in_model():
            self._run.judge(self._pass.validate())


def _refuse_limits(limits: GradientLimits) -> None:
    if limits != GradientLimits():
        message = "register_optimizer got limits of gradients without a name; set trainer.clip_grad_norm or "
        raise RegistrationError(message + "trainer.clip_grad_value, or give the optimizer a name")
