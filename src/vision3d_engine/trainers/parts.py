"""What a user registers with a trainer: optimizers, schedules, loaders, states, hooks, metrics."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vision3d_engine.core.errors import RegistrationError
from vision3d_engine.core.portable import has_state
from vision3d_engine.data.loader_sets import check_loaders
from vision3d_engine.distributed.parallel.choose import choose_parallel
from vision3d_engine.endpoints.capture import Capture
from vision3d_engine.loop.hooks import TRAIN_HOOKS
from vision3d_engine.loop.train_pass import TrainPass
from vision3d_engine.optim.named_groups import groups_table
from vision3d_engine.optim.named_optimizers import GradientLimits, with_named
from vision3d_engine.optim.schedule import Timing
from vision3d_engine.run.engine import Engine, refuse_second, with_methods
from vision3d_engine.run.session import Session
from vision3d_engine.run.training_run import TrainingRun

_OPTIMIZER = ("step", "zero_grad", "param_groups", "state_dict", "load_state_dict")


class TrainerParts(Engine):
    """Takes the parts of a training; what is registered stands in attributes, which a script may exchange.

    Args:
        cfg: settings of any kind.
        base: the engine's class whose empty methods need not be called.
    """

    def __init__(self, cfg: Any, base: type) -> None:
        session = Session(cfg, "train")
        parallel = choose_parallel(session.settings.trainer, session.world)
        super().__init__(session, cfg, TRAIN_HOOKS, base, parallel)
        self.optimizer: Any = None
        self.scheduler: Any = None
        self.train_loader: Any = None
        self.val_loader: Any = None
        #: Name of the validation set at hand, where several are registered; None outside of validations.
        self.val_name: str | None = None
        self._run = TrainingRun(self, session, self._context, self._loaders)

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

    def register_loader(
        self, train_loader: Iterable[Any], val_loader: Iterable[Any] | Mapping[str, Iterable[Any]] | None = None
    ) -> None:
        """Register the loaders; each yields dicts.

        Args:
            train_loader: what is trained on.
            val_loader: what is validated on; or several by name, ``{"easy": a, "hard": b}``, whose numbers are called
                ``easy/loss`` and so on, and whose steps find the name in ``self.val_name``. None where
                ``trainer.val_every`` is ``never``.

        Raises:
            RegistrationError: for what is no iterable, for an iterator that two of them would move, and for a name
                that is no text, or has a "/".
        """
        check_loaders(train_loader, val_loader)
        self.train_loader = train_loader
        self.val_loader = val_loader

    def register_state(self, name: str, part: Any) -> Any:
        """Save and restore an object with every ``checkpoint.pth``, and return it: a curriculum, an EMA, a GradScaler.

        Args:
            name: its name in the file and in messages.
            part: anything with ``state_dict`` and ``load_state_dict``, or a generator of torch, numpy or python; of
                several processes the main one's is saved. States may hold numbers, text, tensors, arrays, enums, sets,
                deques, paths and times, in dicts (of any keys, ordered, counting, with a default), lists and tuples,
                named ones too, and come back as they were; what would not is refused before the first step.

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

    def capture(
        self,
        modules: str | type[nn.Module],
        every: int = 100,
        *,
        histograms: bool = False,
        clouds: str | None = None,
        channel: int | None = None,
    ) -> Capture:
        """Capture what modules of the model return in some training steps, without touching the model.

        In such a step ``self.endpoints`` holds it under the names of the modules (``NAME#2`` for a second call), in
        `after_backward` with the gradients. Statistics go into the log with the next log line, and to the writers as
        ``endpoints/NAME/mean`` and so on; those of the main process. Other steps have no hooks.

        Args:
            modules: a pattern for names, as in a shell (``"backbone.layers.*"``; the star stands for dots too), or a
                type of modules. Call `register_model` before.
            every: captured are the training batches whose number since the start of the run is a multiple of it.
            histograms: write histograms too, which waits for the device.
            clouds: write clouds too, which waits for the device: name of the points in the batch, or in what the step
                returns, that have the captured features, ``(N, 3)`` or ``(B, N, 3)``, or a list of them for each level
                of detail, of which those with as many points count. Four clouds of a batch are written as
                ``endpoints/NAME/pca``, coloured by the first three principal components of the features.
            channel: colour them by this feature instead, as ``endpoints/NAME/channel-3``.

        Returns:
            What captures, with a method ``remove``.

        Raises:
            RegistrationError: when no module matches, and for a channel without clouds.
        """
        self._require(model=self.model)
        capture = Capture(modules, every, histograms=histograms, clouds=clouds, channel=channel)
        self._context.captures.add(capture, self)
        if isinstance(self._pass, TrainPass):
            self._pass.look_inside(self._context.captures)
        return capture

    def dump_step(self) -> Path:
        """Write the training step at hand into a file under ``debug/`` that ``vision3d-engine replay`` runs anywhere.

        It holds batch, weights, optimizer, counters, seed and settings. To be called before the update, in
        `before_train_step`, `train_step` or `after_backward`; each process writes its own. Waits for the device.

        Raises:
            RegistrationError: where no training step is at hand, or behind its update.
            CheckpointError: for a batch that does not load as data only, with the key path of what does not.
            FolderError: when the file cannot be written.
        """
        return self._run.autosave.capsules.dump()

    def save_best_model_on_metric(self, metric: str, largest: bool = True) -> None:
        """Keep the model that is best on a metric of the validation summary as ``best_METRIC.pth``.

        Call it once for each metric.

        Args:
            metric: key of the summary dict, from `val_step` or added in `after_val_epoch`.
            largest: whether more is better.
        """
        self._run.checkpoints.add_metric(metric, largest)


def _refuse_limits(limits: GradientLimits) -> None:
    if limits != GradientLimits():
        message = "register_optimizer got limits of gradients without a name; set trainer.clip_grad_norm or "
        raise RegistrationError(message + "trainer.clip_grad_value, or give the optimizer a name")
