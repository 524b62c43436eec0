"""What every pass of a run works with; the same from the first pass to the last."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vision3d_engine.core.seeding import StepSeeds, data_seed, derived_seed, seed_everything
from vision3d_engine.data.loader_hints import LoaderHints
from vision3d_engine.data.prefetcher import HostTensors
from vision3d_engine.distributed.coordination.reductions import MainNumbers
from vision3d_engine.distributed.parallel.base import Parallel
from vision3d_engine.distributed.parallel.replica_check import ReplicaCheck
from vision3d_engine.distributed.world import World
from vision3d_engine.endpoints.context_manager import ContextManager
from vision3d_engine.loop.captures import Captures
from vision3d_engine.loop.counters import Counters
from vision3d_engine.loop.hooks import Hooks
from vision3d_engine.loop.parameter_statistics import ParameterStatistics
from vision3d_engine.loop.profiled_steps import ProfiledSteps
from vision3d_engine.loop.progress import Progress
from vision3d_engine.loop.progress_bar import ProgressBar
from vision3d_engine.loop.registered_metrics import Metrics
from vision3d_engine.loop.untrained import UntrainedParameters
from vision3d_engine.metrics.epoch_times import EpochTimes
from vision3d_engine.update.precision import Precision


def setting(name: str, doc: str) -> Any:
    """Return a property that shows a setting ``trainer.*`` of a trainer or tester."""
    return property(lambda owner: getattr(owner._context.settings, name), doc=doc)  # noqa: SLF001  the engine's own


def counter(name: str, doc: str) -> Any:
    """Return a property that shows a counter of the run, which a script may set."""

    def put(owner: Any, value: int) -> None:
        setattr(owner._context.progress, name, value)  # noqa: SLF001  the engine's own

    return property(lambda owner: getattr(owner._context.progress, name), put, doc=doc)  # noqa: SLF001


class Reading:
    """Shows a number of the run as an attribute of a trainer or tester; a script's own attribute of this name hides it.

    Args:
        get: returns the number, given the trainer or tester.
        doc: what it is.
    """

    def __init__(self, get: Callable[[Any], Any], doc: str) -> None:
        self._get, self.__doc__ = get, doc

    def __get__(self, owner: Any, _kind: type) -> Any:
        return self if owner is None else self._get(owner)


@dataclass(frozen=True)
class PassContext:
    """Settings, processes, counters and outlets that passes share.

    Attributes:
        settings: the settings ``trainer.*`` in force.
        planned: those of the run as it is meant to be, where a try-out cuts it short.
        seed: the seed of the run.
        world: the processes and the device.
        parallel: how the processes share the model.
        hooks: who is called at the named moments.
        precision: in which numbers steps are computed.
        writers: where numbers go.
        logger: where messages go.
        progress: the counters.
        counters: says how far the run is, over all processes; adds up their named sums.
        metrics: the script's metrics over whole sets.
        main_numbers: returns the main process's numbers on all.
        replicas: compares what the processes train.
        hints: says one hint on slow loading a run.
        host_tensors: says once a run what stays on the host of a batch.
        endpoints: intermediate tensors of the step at hand.
        captures: which modules put theirs there.
        parameter_statistics: looks at gradients, weights and updates.
        untrained: says which parameters the first epoch has not changed.
        debug_folder: where steps are kept that were not finite.
        profiled: profiles some training steps.
        times: what the time of an epoch goes into.
        by_steps: a pass draws by, and its numbers lie at, total steps and not the epoch: that of a validation.
    """

    settings: Any
    planned: Any
    seed: int
    world: World
    parallel: Parallel
    hooks: Hooks
    precision: Precision
    writers: Any
    logger: Any
    progress: Progress
    counters: Counters
    metrics: Metrics
    main_numbers: MainNumbers
    replicas: ReplicaCheck
    hints: LoaderHints
    host_tensors: HostTensors
    endpoints: ContextManager
    captures: Captures
    parameter_statistics: ParameterStatistics
    untrained: UntrainedParameters
    debug_folder: Path
    profiled: ProfiledSteps
    times: EpochTimes
    by_steps: bool = False

    def position(self) -> tuple[object, ...]:
        """Return what a pass and the hooks around it draw by, beside their names."""
        return ("step", self.progress.total_steps) if self.by_steps else (self.progress.epoch,)

    def seed_pass(self, phase: str) -> StepSeeds:
        """Start a pass with randomness of its own, so that neither a resume nor another pass changes what it draws."""
        seed = derived_seed(self.seed, phase, *self.position(), self.world.rank)
        seed_everything(seed)
        return StepSeeds(seed, self.world.device)

    def fire(self, moment: str, *args: Any) -> None:
        """Call the hooks of a moment outside of steps; what they draw depends on the moment and the epoch alone.

        So a resume draws the same: before an epoch that it goes on with, after one whose validation was killed. The
        moments around the whole training draw the same in every epoch in which it starts.
        """
        position = (0,) if moment in {"before_train", "after_train"} else self.position()
        seed_everything(derived_seed(self.seed, moment, *position, self.world.rank))
        with self.times.around.part(moment):
            self.hooks.fire(moment, *args)

    def progress_bar(self, title: str) -> ProgressBar:
        """Return a bar for a pass, which the main process alone shows."""
        return ProgressBar(title, self.world.is_main and self.settings.progress_bar)

    def data_seed(self, phase: str, *position: object) -> int:
        """Return the seed of order and samples of a pass; the same on all processes."""
        return data_seed(self.seed, phase, *position)
