"""The trainer that both kinds of training share."""

import abc
import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from vision3d_engine.core.errors import DataError, RegistrationError, ResultError, did_you_mean, listed
from vision3d_engine.core.seeding import StepSeeds, derived_seed, seed_everything
from vision3d_engine.core.tree import describe
from vision3d_engine.data.advice import advice, advice_on_start
from vision3d_engine.data.prefetcher import Prefetcher
from vision3d_engine.data.source import Place, Source, length_of
from vision3d_engine.debug.finite import FiniteWatch, check_gradients
from vision3d_engine.logs.log_line import get_log_string, train_line
from vision3d_engine.loop.continuation import has_state
from vision3d_engine.loop.engine import Engine
from vision3d_engine.loop.hooks import TRAIN_MOMENTS
from vision3d_engine.loop.results import ResultChecker, as_numbers
from vision3d_engine.loop.runner import Runner
from vision3d_engine.loop.session import Session
from vision3d_engine.loop.turns import Turns
from vision3d_engine.loop.update import Update
from vision3d_engine.metrics.moments import Moments
from vision3d_engine.optim.optimizer import clear_gradients, prefer_fused
from vision3d_engine.optim.scaling import scale_factor, scale_learning_rate
from vision3d_engine.trainers.resumable import Resumable


class BaseTrainer(Resumable, abc.ABC):
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

    def __init__(self, cfg: Any = None) -> None:
        super().__init__(Session(cfg, "train"), cfg, TRAIN_MOMENTS, BaseTrainer)
        self._learning_rate: Any = 0.0
        self._is_debug = self._session.settings.trainer.debug

    # ------------------------------------------------------------------------------------------- state

    @property
    def epoch(self) -> int:
        """The epoch that is running, from 1; 0 before the first."""
        return self._progress.epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        self._progress.epoch = value

    @property
    def iteration(self) -> int:
        """The batch of the running pass, from 1."""
        return self._progress.iteration

    @iteration.setter
    def iteration(self, value: int) -> None:
        self._progress.iteration = value

    @property
    def max_epoch(self) -> int:
        """Epochs to train."""
        return self._session.settings.trainer.max_epoch

    @property
    def grad_acc_steps(self) -> int:
        """Batches whose gradients make one update."""
        return self._session.settings.trainer.grad_acc_steps

    # ------------------------------------------------------------------------------------------- parts

    def _wrap(self, model: nn.Module) -> nn.Module:
        return self._parallel.wrap(model)

    def register_optimizer(self, optimizer: Any) -> None:
        """Register the optimizer: torch's, or anything with ``step``, ``zero_grad``, ``param_groups``, ``state_dict``.

        The learning rate is used as it is on any number of processes, unless ``trainer.scale_lr`` says otherwise.
        """
        wanted = ("step", "zero_grad", "param_groups", "state_dict", "load_state_dict")
        self.optimizer = _with_methods("register_optimizer", optimizer, wanted)

    def register_scheduler(self, scheduler: Any) -> None:
        """Register the learning rate schedule: torch's, anything with ``step`` and ``state_dict``, or None for none.

        Raises:
            RegistrationError: for ReduceLROnPlateau, unless `scheduler_step` is overridden to hand it its metric.
        """
        if isinstance(scheduler, ReduceLROnPlateau) and type(self).scheduler_step is BaseTrainer.scheduler_step:
            message = "ReduceLROnPlateau needs a metric: override scheduler_step() to call self.scheduler.step(metric)"
            raise RegistrationError(message)
        wanted = ("step", "state_dict", "load_state_dict")
        self.scheduler = None if scheduler is None else _with_methods("register_scheduler", scheduler, wanted)

    def register_loader(self, train_loader: Iterable[Any], val_loader: Iterable[Any]) -> None:
        """Register the loaders; each yields dicts."""
        for name, loader in (("training", train_loader), ("validation", val_loader)):
            if not hasattr(loader, "__iter__"):
                message = f"register_loader got {describe(loader)} as {name} loader; it must be an iterable of dicts"
                raise RegistrationError(message)
        self.train_loader = train_loader
        self.val_loader = val_loader

    def save_best_model_on_metric(self, metric: str, largest: bool = True) -> None:
        """Keep the model that is best on a metric of the validation summary as ``best_METRIC.pth``.

        Call it once for each metric.

        Args:
            metric: key of the summary dict, from `val_step` or added in `after_val_epoch`.
            largest: whether more is better.
        """
        self._checkpoints.add_metric(metric, largest)

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

    def loss_weight(self, data_dict: Any, output_dict: Any, result_dict: Any) -> Any:
        """Return how many things ``result_dict["loss"]`` is a mean over: a number, or a tensor of one element.

        Override it when batches hold varying numbers of points, correspondences or samples, so that an accumulated
        update equals that of one big batch. By default every batch counts 1.
        """
        return 1

    # ------------------------------------------------------------------------------------------- hooks and steps

    def before_train(self) -> None:
        """Act once before the first epoch, after a checkpoint has been loaded."""

    def before_train_epoch(self, epoch: int) -> None:
        """Act before a training epoch."""

    def before_train_step(self, epoch: int, iteration: int, data_dict: Any) -> None:
        """Act before a training step; the batch is on the device."""

    @abc.abstractmethod
    def train_step(self, epoch: int, iteration: int, data_dict: Any) -> tuple[Any, dict[str, Any]]:
        """Return ``output_dict, result_dict`` for a batch; must be implemented.

        ``result_dict["loss"]`` is one number that requires grad; every other value is one number to be logged. Keep
        numbers as tensors: the engine reads them when a log line is due.
        """

    def after_backward(self, epoch: int, iteration: int, data_dict: Any, output_dict: Any, result_dict: Any) -> None:
        """Act after the backward pass; in the batch that ends a window the gradients are those of the update.

        It is also called for an update in which this process joins without a batch of its own, since gradients must be
        treated alike on all processes.
        """

    def after_train_step(self, epoch: int, iteration: int, data_dict: Any, output_dict: Any, result_dict: Any) -> None:
        """Act after the training step; numbers added to ``result_dict`` are logged."""

    def after_log(self, epoch: int, iteration: int, log_dict: dict[str, float]) -> None:
        """Act after a log line of training, on all processes; ``log_dict`` holds its means over all of them."""

    def after_train_epoch(self, epoch: int, summary_dict: dict[str, Any]) -> None:
        """Act after a training epoch; ``summary_dict`` holds the means over the epoch."""

    def before_val_epoch(self, epoch: int) -> None:
        """Act before a validation epoch."""

    def before_val_step(self, epoch: int, iteration: int, data_dict: Any) -> None:
        """Act before a validation step; the batch is on the device."""

    @abc.abstractmethod
    def val_step(self, epoch: int, iteration: int, data_dict: Any) -> tuple[Any, dict[str, Any]]:
        """Return ``output_dict, result_dict`` for a batch; must be implemented. Every result is one number."""

    def after_val_step(self, epoch: int, iteration: int, data_dict: Any, output_dict: Any, result_dict: Any) -> None:
        """Act after a validation step; numbers added to ``result_dict`` are logged."""

    def after_val_epoch(self, epoch: int, summary_dict: dict[str, Any]) -> None:
        """Act after a validation epoch; numbers added to ``summary_dict`` are logged and can select best models."""

    def after_train(self) -> None:
        """Act once after the last epoch."""

    # ------------------------------------------------------------------------------------------- the run

    def run(self, only_validation: bool = False) -> None:
        """Train and validate until ``max_epoch``; or validate once and save nothing.

        Raises:
            EngineError: for a missing part, an empty loader, a wrong result dict, a checkpoint that does not fit, ...
        """
        self._require(train_loader=self.train_loader, val_loader=self.val_loader, model=self.model)
        self._require(optimizer=self.optimizer)
        with self._session.running():
            if only_validation:
                with self._session.watching(self._where):
                    self._prepare()
                    self._between("before_train", self._validate_once, "after_train")
                return
            with self._session.owning_folder(), self._saving(), self._listening():
                self._is_restarted = self._was_restarted()
                self._claim_folder()
                self._tidy_folder()
                self._session.write_records()
                self._prepare()
                self._between("before_train", self._train, "after_train")

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Notice signals, and what other processes ask for."""
        self._agreement.start()
        try:
            with self._requests.listening(), self._session.watching(self._where):
                yield
        finally:
            self._agreement.stop()

    def _where(self) -> str:
        """Say where in the run this process is."""
        if self._runner is None:
            return "the preparations"
        return f"{self._runner.phase} epoch {self.epoch}, iteration {self.iteration}"

    def _prepare(self) -> None:
        """Check what can be checked before the first step, and load what the command line asks for."""
        self._check_loaders()
        self._session.check_arguments()
        if self.scheduler is None:
            self.log("no learning rate schedule is registered: the rate stays as it is")
        for note in filter(None, (self._train_source().note, *self._forgotten_states())):
            self.log(note)
        if self._session.settings.trainer.fused_optimizer and prefer_fused(self.optimizer, self.model):
            self.log("optimizer: fused kernels", level="DEBUG")
        self._scale_rates()
        self._begin()
        self._events.bind()
        self.set_train_mode()

    def load(self, filename: str) -> None:
        """Load a checkpoint with all parts that it holds, and go on from its moment; see `Resumable.load`."""
        self._scale_rates()  # first: the rates of a checkpoint are those of its run, whatever the processes now
        super().load(filename)

    def _scale_rates(self) -> None:
        """Fit the learning rate to the number of processes, once for each optimizer."""
        rule, size = self._session.settings.trainer.scale_lr, self._session.world.size
        if rule == "none" or self._scaled is self.optimizer:
            return
        before, factor = self.get_lr(), scale_factor(rule, size)
        scale_learning_rate(self.optimizer, self.scheduler, factor)
        self._scaled = self.optimizer
        result = f"{before:g} x {factor:g} = {self.get_lr():g}"
        self.log(f"learning rate: {result} (trainer.scale_lr is {rule}, {size} processes); a resume keeps its own")

    _scaled: Any = None

    def _between(self, before: str, act: Callable[[], None], after: str) -> None:
        self._events.fire(before)
        act()
        self._events.fire(after)

    def _forgotten_states(self) -> Iterator[str]:
        """Say which attributes have a state that no checkpoint would hold."""
        known = [self.model, self.optimizer, self.scheduler, *self._continuation.parts.values()]
        loaders = [self.train_loader, self.val_loader]
        for name, part in vars(self).items():
            is_ours = name.startswith("_") or any(part is one for one in (*known, *loaders, *self._events.hooks))
            if not is_ours and has_state(part) and not _is_inside(part, self.model) and part.state_dict():
                yield f"self.{name} has a state that is not saved: call self.register_state('{name}', self.{name})"

    def _train(self) -> None:
        while self._progress.is_open or self.epoch < self.max_epoch:
            if not self._progress.is_open:
                self._progress.begin_epoch()
            self.train_epoch()
            self.save(f"epoch-{self.epoch}.pth")
            self.val_epoch()
            self._stop_if_asked()
        self._session.writers.flush()

    def _validate_once(self) -> None:
        summary_dict = self._run_validation()
        self._check_metrics(summary_dict)

    def _check_loaders(self) -> None:
        """Refuse loaders that are empty on all processes."""
        for name, loader in (("training", self.train_loader), ("validation", self.val_loader)):
            if set(self._session.world.gather(length_of(loader))) == {0}:
                message = f"the {name} loader is empty: len(loader) is 0. Check the data set, batch_size and drop_last"
                raise DataError(message)

    # ------------------------------------------------------------------------------------------- training

    @abc.abstractmethod
    def _train_batches(self) -> tuple[Iterable[tuple[Place, Any]], int | None]:
        """Return what is left of the epoch's batches, and the number of all of them, None when it is not known."""

    @abc.abstractmethod
    def _schedule_after_step(self, updated: bool) -> None:
        """Move the schedule on after a training step, if it follows iterations."""

    @abc.abstractmethod
    def _schedule_after_epoch(self) -> None:
        """Move the schedule on after a training epoch, if it follows epochs."""

    def train_epoch(self) -> None:
        """Train for one epoch, or for what is left of it."""
        self._step_seeds = self._seed("train")
        self._seeds_steps = self._train_source().is_positioned
        batches, own_length = self._train_batches()
        lengths, mode = self._session.world.gather(own_length), self._session.settings.trainer.uneven
        turns = self._turns = Turns(lengths, self._session.world.rank, mode)
        self._events.fire("before_train_epoch", self.epoch)
        self._update = self._new_update()
        self._finite = self._new_finite_watch()
        self._checker = ResultChecker("train_step")
        self._runner = self._new_runner("train", self._train_iteration, self._after_train_iteration)
        self._open_moments = self._restored(self._runner.moments)
        clear_gradients(self.optimizer)
        done = self._progress.trained
        self._runner.run(turns.evened(batches, done, self._own_batches), turns.length, done)
        self._close_train_epoch()
        self._end_train_epoch(self._runner)

    def _own_batches(self, first: int) -> Iterable[tuple[Place, Any]]:
        """Return this process's batches of the epoch, from number ``first`` (counted from 0) on."""
        base, rank = self._data_seed("train", self.epoch), self._session.world.rank
        return self._train_source().batches(base, self.epoch, first, rank)

    def _fill_in(self, iteration: int, data_dict: Any) -> list[dict[str, Any]]:
        """Join in a step of other processes with a batch that has no weight and shows in no mean.

        Of the hooks only `after_backward` acts, when a window ends: what it does to the gradients of the update (clips
        them) must happen on all processes.
        """
        with self._update.micro_batch(self._runner.is_last):
            output_dict, result_dict = self._checker.unpack(self.train_step(self.epoch, iteration, data_dict))
            self._update.backward(self._checker.loss(result_dict), 0, self._turns.mean_weight(iteration))
        if self._update.is_complete:
            self._events.fire("after_backward", self.epoch, iteration, data_dict, output_dict, result_dict)
        if self._update.step_if_due():
            self._count_update()
        return []

    def _restored(self, moments: Moments) -> Moments:
        """Put the running means of an epoch that goes on into its meters."""
        for number, state in enumerate(self._continuation.take_moments()):
            (moments.add_state if number else moments.load_state_dict)(state)
        return moments

    def _close_train_epoch(self) -> None:
        """Make the last update and save, so that a validation that fails costs no training."""
        if not self._progress.is_trained:
            if self._update.close():
                self._count_update()
            self._schedule_after_epoch()
            self._progress.is_trained = True
            self._save_between_steps(is_due=True)
        self._open_moments = None

    def _seed(self, phase: str) -> StepSeeds:
        """Begin a pass with randomness of its own, so that neither a resume nor another pass changes what it draws."""
        world = self._session.world
        seed = derived_seed(self._session.settings.exp.seed, phase, self.epoch, world.rank)
        seed_everything(seed)
        return StepSeeds(seed, world.device)

    def _data_seed(self, phase: str, epoch: int) -> int:
        """Return the seed of order and samples of a pass; the same on all processes."""
        return derived_seed(self._session.settings.exp.seed, "data", phase, epoch)

    def _new_update(self) -> Update:
        trainer = self._session.settings.trainer
        return Update(
            self.model,
            self.optimizer,
            self.optimizer_step,
            window_size=trainer.grad_acc_steps,
            reduction=trainer.grad_acc_reduction,
            parallel=self._parallel,
            equal_weights=type(self).loss_weight is BaseTrainer.loss_weight,
        )

    def _new_finite_watch(self) -> FiniteWatch:
        is_enabled = self._session.settings.trainer.nonfinite == "stop"
        is_spread = self._parallel.store is not None
        return FiniteWatch(self.model, is_enabled, is_spread=is_spread, of_all=self._parallel.of_all)

    def _new_runner(self, phase: str, step: Any, after_step: Any) -> Runner:
        world = self._session.world
        moments = Moments(self._add_up)
        bar = phase != "train" and world.is_main
        may_be_empty = phase == "val" and world.size > 1
        return Runner(
            phase,
            step,
            after_step,
            prefetcher=Prefetcher(world.device, look_ahead=phase != "train" or not self._train_source().is_stateful),
            moments=moments,
            progress_bar=bar,
            may_be_empty=may_be_empty,
        )

    def _train_iteration(self, iteration: int, data_dict: Any) -> Iterable[dict[str, Any]]:
        """One micro-batch: forward, backward and, when its window is full, the optimiser step."""
        epoch, update = self.epoch, self._update
        self._advance(iteration)
        if self._turns.is_filling(iteration):
            return self._fill_in(iteration, data_dict)
        self._events.fire("before_train_step", epoch, iteration, data_dict)
        with update.micro_batch(self._runner.is_last):
            output_dict, result_dict = self._checker.unpack(self.train_step(epoch, iteration, data_dict))
            loss = self._checker.loss(result_dict)
            weight = self.loss_weight(data_dict, output_dict, result_dict)
            update.backward(loss, weight, self._turns.mean_weight(iteration))
        self._events.fire("after_backward", epoch, iteration, data_dict, output_dict, result_dict)
        if self._is_debug:
            self._check_gradients(data_dict)
        self._learning_rate = self.optimizer.param_groups[0]["lr"]
        if update.step_if_due():
            self._count_update()
        self._events.fire("after_train_step", epoch, iteration, data_dict, output_dict, result_dict)
        self._checker.check(result_dict)
        return (result_dict,)

    def _advance(self, iteration: int) -> None:
        """Count a batch, and seed what its step draws."""
        progress = self._progress
        progress.iteration = progress.trained = iteration
        progress.place = self._runner.place
        progress.total_steps += 1
        if self._seeds_steps:
            self._step_seeds.seed(iteration)

    def _count_update(self) -> None:
        self._progress.updates += 1

    def _check_gradients(self, data_dict: Any) -> None:
        """Stop at the first gradient that is not finite."""
        check_gradients(self.model, data_dict, self.epoch, self.iteration, self._session.folders.output / "debug")

    def _after_train_iteration(self, iteration: int) -> None:
        if iteration % self.log_steps == 0:
            self._log_train(self._runner)
        is_complete = self._update.is_complete
        self._schedule_after_step(is_complete)
        if is_complete and not self._runner.is_last:
            self._save_between_steps()

    def _log_train(self, runner: Runner) -> None:
        """Write the means since the last log line, with the learning rate that the step used."""
        means, probed = runner.moments.window_means(*self._finite.probe())
        first = runner.moments.first_not_finite("loss")
        self._finite.check(means.get("loss", 0.0), probed, self.epoch, first, self.iteration)
        window, lr = runner.clock.window(), float(self._learning_rate)
        position = {"epoch": self.epoch, "iteration": self.iteration, "updates": self._progress.updates, "lr": lr}
        self._session.writers.scalars("train", means, self.total_steps, **position)
        samples, device = self._train_source().samples_per_step(self._session.world.size), self._session.world.device
        self._say(partial(train_line, means, window, position, self.max_epoch, runner.max_iteration, samples, device))
        self._advise(advice(self._train_source().loader, window.steady_data_s, window.model_s))
        self._events.fire("after_log", self.epoch, self.iteration, dict(means))

    def _say(self, make: Callable[[], str]) -> None:
        """Log a line that is put together later; at once for a script that has a `log` of its own."""
        if getattr(type(self), "log", None) is Engine.log:
            self._session.logger.line(make)
        else:
            self.log(make())

    def _advise(self, message: str | None) -> None:
        """Say once when loading holds the training up, and what to do."""
        if message is not None and not self._has_advised:
            self._has_advised = True
            self.log(message, level="WARNING")

    _has_advised = False

    def _end_train_epoch(self, runner: Runner) -> None:
        summary_dict: dict[str, Any] = runner.moments.means()
        clock, times = runner.clock, runner.clock.means()
        self._advise(advice_on_start(self._train_source().loader, clock.first_data_s, clock.elapsed_s()))
        self.log("[Train] " + get_log_string(summary_dict, self.epoch, self.max_epoch, time_dict=times))
        self._session.writers.row("train_epoch", summary_dict, step=self.total_steps, epoch=self.epoch)
        self._events.fire("after_train_epoch", self.epoch, summary_dict)

    # ------------------------------------------------------------------------------------------- validation

    def val_epoch(self) -> None:
        """Validate, keep best models and write ``checkpoint.pth``."""
        summary_dict = self._run_validation()
        improved = self._checkpoints.update_best_model(as_numbers(summary_dict), self.metadata, self.model)
        for metric, score in improved.items():
            self.log(f"new best {metric}: {score:.4f}", level="SUCCESS")
        self._progress.is_open = False
        self._save_after_epoch()
        self._session.writers.flush()
        self._check_metrics(summary_dict)

    def _save_after_epoch(self) -> None:
        """Write ``checkpoint.pth``; with a cadence of several epochs only after these, and after the last."""
        count, unit = self._cadence
        if unit != "epoch" or self.epoch % int(count) == 0 or self.epoch >= self.max_epoch:
            self._save_newest()

    def _run_validation(self) -> dict[str, Any]:
        """Validate without gradients; return the summary with what `after_val_epoch` added to it."""
        self._seed("val")
        self._records = {}
        self.set_eval_mode()
        self._events.fire("before_val_epoch", self.epoch)
        self._checker = ResultChecker("val_step")
        runner = self._runner = self._new_runner("val", self._val_iteration, self._after_val_iteration)
        source = Source(self.val_loader)
        with self._parallel.local_forward(self.model, source.length):
            base = self._data_seed("val", self.epoch)
            runner.run(source.batches(base, self.epoch, rank=self._session.world.rank), source.length)
        summary_dict: dict[str, Any] = runner.moments.means()
        self._events.fire("after_val_epoch", self.epoch, summary_dict)
        self._log_validation(as_numbers(summary_dict), runner)
        self.set_train_mode()
        return summary_dict

    def _val_iteration(self, iteration: int, data_dict: Any) -> Iterable[dict[str, Any]]:
        epoch = self.epoch
        self._progress.iteration = iteration
        with torch.no_grad():
            self._events.fire("before_val_step", epoch, iteration, data_dict)
            output_dict, result_dict = self._checker.unpack(self.val_step(epoch, iteration, data_dict))
            self._events.fire("after_val_step", epoch, iteration, data_dict, output_dict, result_dict)
        self._checker.check(result_dict)
        return (result_dict,)

    def _after_val_iteration(self, iteration: int) -> None:
        """Stop if asked to; one process of several goes on to the end, where the others wait for it."""
        if self._session.world.size == 1:
            self._stop_if_asked()

    def _log_validation(self, summary_dict: dict[str, float], runner: Runner) -> None:
        times = runner.clock.means()
        message = get_log_string(summary_dict, epoch=self.epoch, max_epoch=self.max_epoch, time_dict=times)
        self.log("[Val] " + message, level="SUCCESS")
        self._session.writers.scalars("val", summary_dict, self.epoch, epoch=self.epoch, total_steps=self.total_steps)

    def _check_metrics(self, summary_dict: dict[str, Any]) -> None:
        """Refuse to go on when a metric that selects best models is never there."""
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


def _is_inside(part: Any, model: nn.Module) -> bool:
    """Tell whether a part is a module of the model, whose state the model's holds."""
    return any(part is module for module in model.modules())
