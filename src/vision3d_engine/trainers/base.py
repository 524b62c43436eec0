"""The trainer that both kinds of training share: what a user registers, overrides and runs."""

import abc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Unpack

import torch

from vision3d_engine.checkpoint.loading import WeightNames, load_weights
from vision3d_engine.core.errors import RegistrationError
from vision3d_engine.data.resumable_loader import ResumableLoader
from vision3d_engine.loop.between_updates import BetweenUpdates
from vision3d_engine.loop.context import Reading, counter, setting
from vision3d_engine.loop.train_pass import Batches, TrainPass
from vision3d_engine.loop.validation import Validation
from vision3d_engine.optim.named_optimizers import NamedOptimizers
from vision3d_engine.run.engine import refuse_hidden_methods
from vision3d_engine.trainers.hooks import TrainHooks
from vision3d_engine.trainers.parts import TrainerParts
from vision3d_engine.update.held import clear_gradients

# What the engine calls of a trainer.
_CALLED = ("backward", "optimizer_step", "scheduler_step", "set_train_mode", "set_eval_mode", "save", "load")
_CALLED += ("load_weights", "log", "train_epoch", "val_epoch", "train_step", "val_step")


class BaseTrainer(TrainerParts, TrainHooks, abc.ABC):
    """Trains a model: subclass `EpochBasedTrainer` or `IterBasedTrainer`, register the parts, write two steps.

    In the constructor call ``super().__init__(cfg)``, then `register_loader`, `register_model`, `register_optimizer`
    and, if wanted, `register_scheduler` and `save_best_model_on_metric`. Implement `train_step` and `val_step`;
    override any other hook. Then call `run`.

    Validation pipeline: before_val_epoch; for each iteration, of several sets one after the other, before_val_step,
    val_step, after_val_step; then after_val_epoch, log line and events, best models.

    When it is validated is said by ``trainer.val_every``: after each epoch, or each so many iterations, or never.

    Files: after each training epoch ``epoch-N.pth`` (metadata and weights), before and after each validation
    ``checkpoint.pth`` (optimizer, schedule and selection too), ``best_METRIC.pth`` for each metric that improved.

    Args:
        cfg: settings of any kind (dict, EasyDict, OmegaConf, dataclass, Namespace, pydantic, None for defaults); only
            ``exp.*`` and ``trainer.*`` are read.

    Raises:
        ConfigError: for wrong settings or flags, all at once.
        FolderError: when the run folder cannot be written.
    """

    _schedule_follows: ClassVar[str]

    def __init__(self, cfg: Any = None) -> None:
        super().__init__(cfg, BaseTrainer)

    epoch = counter("epoch", "The epoch that is running, from 1; 0 before the first.")
    total_steps = counter("total_steps", "Training batches since the start of the run.")
    updates = Reading(lambda own: own._progress.updates, "Updates since the start of the run.")  # noqa: SLF001
    samples = Reading(
        lambda own: own._context.counters.samples,  # noqa: SLF001
        "Training samples of all processes since the start of the run, of several processes as of the latest log line, "
        "end of an epoch or ``checkpoint.pth``; None where it is not known how many samples batches hold.",
    )
    max_epoch = setting("max_epoch", "Epochs to train; None when ``max_updates`` alone says how long.")
    max_updates = setting("max_updates", "Updates after which the run ends; None for no limit.")
    grad_acc_steps = setting("grad_acc_steps", "Batches whose gradients make one update.")

    @property
    def metadata(self) -> dict[str, int]:
        """What every checkpoint says about its moment: epoch, total_steps, updates and, where known, samples."""
        return self._context.counters.metadata()

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

    def update(self, name: str, loss: torch.Tensor, weight: Any = None) -> None:
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
                is about the returned loss); to be given in all calls for an optimizer, or in none.

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
        optimizer, precision = self.optimizer if name is None else self.optimizer[name], self._context.precision
        precision.step(optimizer) if precision.is_scaled else optimizer.step()
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
        """Train and validate until ``max_epoch`` or ``max_updates``; or validate once and save nothing.

        Raises:
            EngineError: for a missing part, an empty loader, a wrong result dict, a checkpoint that does not fit, ...
        """
        with self._session.short_tracebacks():
            self._require(train_loader=self.train_loader, model=self.model, optimizer=self.optimizer)
            refuse_hidden_methods(self, _CALLED)
            try:
                self._run.run(only_validation)
            finally:
                self._let_go()

    def stop(self, reason: str | None = None) -> None:
        """End the run in good order, from any hook or step; one process of several is enough.

        Called in training it takes effect at the next log line, with the update that is due then, or at the end of the
        epoch if that comes first; called between passes or in a validation, at the end of the epoch; in `before_train`
        no step is made. Then come `after_train_epoch`, ``epoch-N.pth``, the validation, best models, `after_train`. A
        resume goes on from there, in mid-epoch too. In a run that only validates it has no effect.

        Args:
            reason: what the log says of it.

        Raises:
            RegistrationError: when no run is running.
        """
        self._run.ending.stop(reason)

    def _where(self) -> str:
        """Say where in the run this process is."""
        now = self._pass
        return "the preparations" if now is None else f"{now.phase} epoch {self.epoch}, iteration {self.iteration}"

    @abc.abstractmethod
    def _lengths(self, settings: Any) -> list[int | None]:
        """Return all processes' numbers of batches of an epoch, as far as they know; to be called by all of them.

        Args:
            settings: those in force, or those of the run that is tried out.
        """

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
        run = self._run
        run.open_training()
        seeds = self._context.seed_pass("train")
        loader = run.train_data()
        lengths, read = self._open_data(loader)
        self._pass = TrainPass(
            self,
            self._context,
            loader,
            lengths=lengths,
            read=read,
            seeds=seeds,
            average=run.average,
            between=BetweenUpdates(self._progress, run.autosave, run.validations, run.ending, run.scheduling.steps()),
        )
        with run.resume_state.open_pass(self._pass.meters, self._pass.metrics):
            self._pass.run()
            run.close_training()

    def val_epoch(self) -> None:
        """Validate and keep best models."""
        self._records.clear()
        run, due = self._run, self._run.validations
        self._pass = Validation(
            self, due.context(), run.val_data, run.after_val_iteration, self._records, due.place_in_epoch()
        )
        with self._run.average.in_model():
            self._run.judge(self._pass.validate())
