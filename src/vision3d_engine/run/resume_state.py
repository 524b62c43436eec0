"""What a resume restores beside model, optimizer and schedule, so that a run goes on as if nothing had been."""

import datetime as dt
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from vision3d_engine.checkpoint.files import plain_state
from vision3d_engine.checkpoint.loading import with_names_of
from vision3d_engine.core.errors import CheckpointError, RegistrationError, listed, text_of
from vision3d_engine.core.portable import decoded, encoded, has_state, with_state
from vision3d_engine.core.tree import describe
from vision3d_engine.data.dataloader import orders_of
from vision3d_engine.data.dealing import StepSize, describe_changes
from vision3d_engine.data.resumable_loader import ResumableLoader
from vision3d_engine.loop.context import PassContext
from vision3d_engine.loop.pass_metrics import PassMetrics
from vision3d_engine.loop.progress import Progress
from vision3d_engine.metrics.running_means import RunningMeans
from vision3d_engine.run.asked_values import AskedValues
from vision3d_engine.run.closing import RunClock
from vision3d_engine.run.ending import Ending
from vision3d_engine.run.trained_state import TrainedState
from vision3d_engine.run.unsaved import Unsaved, digest

# Where a checkpoint has means and metrics of the open pass.
_OPEN = ("moments", "metrics")
_SHORT = "this epoch ends {} batches early: what is left of it is no whole number of iterations of {} processes"


class ResumeState:
    """Collects and restores counters, running means, positions of loaders and writers, and the user's own states.

    Args:
        trainer: whose parts and attributes count, as they are at the time.
        context: settings, processes, counters, writers.
        train_data: returns the training data as it is read now.
        ending: whether the run ends (`run.ending`).

    Attributes:
        asked: what the script has built, and what of it is in force.
        trained: parameters outside the model, and what is frozen.
        registered: the user's objects by name.
        unsaved: what is in no checkpoint.
        clock: how long the run has taken.
        open_meters: running means of the training pass that is open, or None.
        open_metrics: its metrics over the whole set, or None.
    """

    def __init__(
        self, trainer: Any, context: PassContext, train_data: Callable[[], ResumableLoader], ending: Ending
    ) -> None:
        settings = context.settings
        self.asked, self.trained = AskedValues(trainer, context.planned), TrainedState(trainer, settings)
        self.registered: dict[str, Any] = {}
        self.unsaved = Unsaved(trainer, self.registered)
        self.open_meters: RunningMeans | None = None
        self.open_metrics: PassMetrics | None = None
        self.clock = RunClock()
        self._is_compared = False
        self._context, self._progress, self._world = context, context.progress, context.world
        self._counters = context.counters
        self._train_data, self._ending = train_data, ending
        self._kept_meters: list[Mapping[str, Any]] = []
        self._kept_metrics: list[Mapping[str, Any]] = []

    def register(self, name: str, part: Any) -> None:
        """Save and restore an object under a name.

        Raises:
            RegistrationError: when it has no state, or the name is taken.
        """
        part = with_state(part)
        if not has_state(part):
            message = f"register_state('{name}') got {describe(part)}; it must have state_dict and load_state_dict"
            raise RegistrationError(message)
        if name in self.registered:
            message = f"register_state('{name}'): this name is taken; choose another one"
            raise RegistrationError(message)
        self.registered[name] = part

    def free_name(self, name: str) -> str:
        """Return the name, or one with a number that nobody has."""
        same = sum(key.partition("#")[0] == name for key in self.registered)
        return f"{name}#{same + 1}" if same else name

    # ------------------------------------------------------------------------------------------- saving

    def state(self) -> dict[str, Any]:
        """Return all of it; to be called by all processes, since each adds its own."""
        loader, meters, gather = self._train_data(), self.open_meters, self._world.gather
        states = {name: part.state_dict() for name, part in self.registered.items()}
        self._tell_differing(states)
        places, samples = zip(*gather((list(self._progress.place), self._counters.own_samples)), strict=True)
        self._counters.take(samples)
        return {
            "progress": self._progress.state_dict(),
            "ending": self._ending.state_dict(),
            "places": list(places),
            "moments": None if meters is None else gather(meters.state_dict()),
            "metrics": self._metrics_state(),
            "orders": gather(None if (orders := orders_of(loader.loader)) is None else orders.state_dict()),
            "loaders": gather(loader.state_dict()) if loader.is_stateful else None,
            "fingerprint": (fingerprints := gather(self._fingerprint(loader)))[0],
            "fingerprints": fingerprints,
            "asked": self.asked.state(),
            "trained": self.trained.state(),
            "precision": self._context.precision.state_dict(),
            "states": {name: encoded(state, f"['states'][{name!r}]") for name, state in states.items()},
            "logs": self._context.writers.positions(),
            "about": _about(self._world.size, self.clock.run_s),
        }

    def _metrics_state(self) -> list[Any] | None:
        """Return what each process has counted in the open pass; None without metrics."""
        metrics = self.open_metrics
        if metrics is None or not self._context.metrics.registered:
            return None
        return self._world.gather(metrics.state_dict())

    def _tell_differing(self, states: Mapping[str, Any]) -> None:
        """Say at the first save which states differ between the processes; of these the main one's is saved."""
        if self._is_compared or self._world.size == 1:
            return
        self._is_compared = True
        main, *others = self._world.gather({name: digest(state) for name, state in states.items()})
        names = [name for name in main if any(other.get(name) != main[name] for other in others)]
        if names and self._world.is_main:
            message = f"registered states differ between the processes: {listed(names)}. The main one's is saved, "
            message += "and a resume gives it to all. Derive what differs from the rank and a common seed at use, "
            message += "or draw from torch's global generator, which the engine seeds for each rank"
            self._context.logger.warn(message)

    def _fingerprint(self, loader: ResumableLoader) -> dict[str, Any]:
        """Return what a resumed run must have in common with the run that it continues."""
        settings = self._context.settings
        own = {"seed": self._context.seed, "grad_acc_steps": settings.grad_acc_steps, "overfit": settings.overfit}
        return own | loader.fingerprint()

    def try_out(self, **parts: Any) -> None:
        """Refuse what a checkpoint could not hold, before the first step; no tensor is copied.

        Args:
            parts: the optimizer and the like, by name.

        Raises:
            RegistrationError: naming the part, and the place in its state.
        """
        forms = dict.fromkeys(parts, plain_state) | dict.fromkeys(self.registered, encoded)
        for name, part in {**parts, **self.registered}.items():
            try:
                forms[name](part.state_dict() if part is not None else None)
            except CheckpointError as error:
                message = f"'{name}' ({describe(part)}) could not be saved: {error}"
                raise RegistrationError(message) from error

    # ------------------------------------------------------------------------------------------- restoring

    def check(self, state: Mapping[str, Any], name: str) -> None:
        """Refuse one of other data, or in an epoch longer than the script's; other processes may share the batches.

        Raises:
            CheckpointError: naming both values.
        """
        self._check_data(state, name)
        progress = Progress()
        progress.load_state_dict(state.get("progress") or {})
        self._deal_anew(progress, state)
        if progress.is_open:
            self.asked.check_length(progress.trained, name)
            if self.asked.counts_iterations and progress.first:
                self._context.logger.warn(f"'{name}': {_SHORT.format(progress.first, self._world.size)}")

    def _check_data(self, state: Mapping[str, Any], name: str) -> None:
        all_saved, rank = state.get("fingerprints") or [], self._world.rank
        saved = all_saved[rank] if len(all_saved) == self._world.size else state.get("fingerprint") or {}
        before, now = self._step_sizes(state)
        explained = before.may_become(now) if before is not None and self._train_data().is_dealt else frozenset()
        changes = describe_changes(saved, self._fingerprint(self._train_data()), explained)
        if not changes:
            if explained and before is not None and now is not None and (said := before.other_updates(now)):
                self._context.logger.warn(f"'{name}': {said}")
            return
        what = f"'{name}' belongs to a run with other data: {'; '.join(changes)}. "
        if not self._context.settings.allow_changed_data:
            fix = "Give the run what it had, start anew in another folder, or add --allow_changed_data to go on anyway"
            raise CheckpointError(what + fix)
        self._context.logger.warn(what + "Going on anyway, so the run is no longer an exact continuation")

    def _step_sizes(self, state: Mapping[str, Any]) -> tuple[StepSize | None, StepSize | None]:
        """Return what a step took of the data, and what it takes now."""
        processes = (state.get("about") or {}).get("processes", 0)
        before = StepSize.of(state.get("fingerprint") or {}, processes)
        return before, StepSize.of(self._fingerprint(self._train_data()), self._world.size)

    def _deal_anew(self, progress: Progress, state: Mapping[str, Any]) -> None:
        """Let these processes go on with the batch behind the last one that any process has had."""
        before, now = self._step_sizes(state)
        if before is not None and now is not None and before.key == now.key and self._train_data().is_dealt:
            progress.deal_anew(before, now, keeps_iterations=self.asked.keeps_length(state))

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state; one of an older engine holds less, which goes on with the next epoch."""
        rank, size = self._world.rank, self._world.size
        self.clock.resume((state.get("about") or {}).get("run_s"))
        self._progress.load_state_dict(state.get("progress") or {})
        if "optimizer" in state:  # else it has weights alone, and no means
            self._keep_means(state.get("progress") or {})
        places, loaders = (state.get(name) or [] for name in ("places", "loaders"))
        if rank < len(places):
            self._progress.load_state_dict({"place": places[rank]})
        self._deal_anew(self._progress, state)
        self._ending.load_state_dict(state.get("ending") or {})
        logs = state.get("closed_logs") if self._ending.is_finished else state.get("logs")
        self._context.writers.cut_back(logs or {}, self._progress.total_steps)
        # With another number of processes the means and metrics of the old ones are shared out.
        self._kept_meters, self._kept_metrics = (list((state.get(name) or [])[rank::size]) for name in _OPEN)
        self._expect_orders(state.get("orders") or [])
        if rank < len(loaders):
            self._train_data().load_state_dict(loaders[rank])
        self._context.precision.load_state_dict(state.get("precision") or {})
        self.restore_registered(state)

    def _expect_orders(self, saved: list[Any]) -> None:
        """Let the training data notice when a sampler of the user's draws another order than before."""
        rank, orders = self._world.rank, orders_of(self._train_data().loader)
        if orders is not None and rank < len(saved) and saved[rank] and not self._context.settings.allow_changed_data:
            orders.load_state_dict(saved[rank])

    def _keep_means(self, saved: Mapping[str, Any]) -> None:
        """Go on with means over what the run has them over: batches in one of an older engine."""
        self._progress.counts_samples = bool(saved.get("counts_samples", False))
        kept = "samples" if self._progress.counts_samples else "batches"
        if kept != self._context.settings.means:
            message = f"means go on over {kept}, as in the checkpoint; trainer.means counts in new runs"
            self._context.logger.warn(message)

    def restore_registered(self, state: Mapping[str, Any]) -> None:
        """Take over the states of the user's objects; say which are on one side only."""
        states = state.get("states") or {}
        for name in self.registered.keys() & states.keys():
            _load(self.registered[name], states[name], name)
        for names, what in (
            (states.keys() - self.registered.keys(), "the checkpoint holds states that nobody registered"),
            (self.registered.keys() - states.keys(), "the checkpoint holds no state for what is registered as"),
        ):
            if names:
                self._context.logger.warn(f"{what}: {listed(sorted(names))}")

    # ------------------------------------------------------------------------------------------- running means

    @contextmanager
    def open_pass(self, meters: RunningMeans, metrics: PassMetrics) -> Iterator[None]:
        """Save means and metrics of a training pass while it runs; it starts with those of the pass that it continues.

        They are kept until the epoch is closed, for the pass that continues it when something fails.
        """
        kept, self._kept_meters = self._kept_meters, []
        for number, state in enumerate(kept):
            (meters.add_state if number else meters.load_state_dict)(state)
        saved, self._kept_metrics = self._kept_metrics, []
        for state in saved:
            metrics.add_state(state)
        self.open_meters, self.open_metrics = meters, metrics
        try:
            yield
        finally:
            self.open_meters = self.open_metrics = None
            self._kept_meters, self._kept_metrics = [meters.state_dict()], [metrics.state_dict()]

    def close_epoch(self) -> None:
        """Forget means and metrics of the epoch."""
        self._kept_meters = self._kept_metrics = []

    def begin_anew(self) -> None:
        """Let the counters stand at zero and forget means and ends, whatever was loaded; all else stays as it is."""
        fresh = Progress(counts_samples=self._progress.counts_samples, told_updates=-1)
        self._progress.load_state_dict(fresh.state_dict())
        self._ending.begin_anew()
        self.close_epoch()


def _about(processes: int, run_s: float | None) -> dict[str, Any]:
    now = dt.datetime.now(tz=dt.UTC).astimezone().isoformat(timespec="seconds")
    about = {"date": now, "torch": torch.__version__, "processes": processes}
    return about if run_s is None else about | {"run_s": round(run_s, 1)}


def _load(part: Any, state: Any, name: str) -> None:
    try:
        part.load_state_dict(with_names_of(part.state_dict(), decoded(state)))
    except (ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        message = f"state '{name}' of the checkpoint does not fit {describe(part)}: {text_of(error)}"
        raise CheckpointError(message) from error
