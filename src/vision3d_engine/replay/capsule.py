"""A step that lies in a file: its batch takes the place of the training data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from vision3d_engine.checkpoint.files import read_checkpoint
from vision3d_engine.core.errors import CheckpointError
from vision3d_engine.core.portable import decoded
from vision3d_engine.core.seeding import StepSeeds, derived_seed
from vision3d_engine.core.tree import map_leaves
from vision3d_engine.data.sample_seeds import SampleIndex
from vision3d_engine.replay.exchanges import refuse_exchange, refusing_exchanges
from vision3d_engine.replay.plan import Plan
from vision3d_engine.replay.probe import StepProbe
from vision3d_engine.replay.smaller_batches import read_batch
from vision3d_engine.replay.starting import Start
from vision3d_engine.run.run_folder import STEPS
from vision3d_engine.writers.step_values import recorded_steps


class Capsule:
    """A file that ``trainer.dump_step()``, or a step that has failed, has left.

    Args:
        path: the file.

    Raises:
        CheckpointError: when it is none, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._step: Mapping[str, Any] = read_checkpoint(path).get("step") or {}
        if not self._step:
            message = f"'{path}' holds no step; expected is a file that trainer.dump_step() or --debug has written "
            raise CheckpointError(f"{message}(debug/step-N.pt)")
        self.step: int = self._step["total_steps"]
        self.seed: int = self._step["seed"]

    def loader(self, batch: str | None = None) -> Any:
        """Return a loader whose every batch is that of the step, or another one, which lies in a file."""
        same = decoded(self._step["batch"]) if batch is None else read_batch(Path(batch))
        return DataLoader(_Same(same, self._step["iteration"] + 1), batch_size=None)

    def recorded(self) -> Mapping[int, Mapping[str, float]]:
        """Return what the run has recorded of its steps, if the file still lies in its folder.

        A run records those of its main process alone.
        """
        return {} if self.rank else recorded_steps(self.path.absolute().parent.parent / "logs" / STEPS)

    @property
    def samples(self) -> list[SampleIndex]:
        """Which samples the batch is made of; none where that is not known, as in files of older engines."""
        return [SampleIndex(**sample) for sample in decoded(self._step.get("samples", []))]

    @property
    def rank(self) -> int:
        """The process whose step it is."""
        return self._step["rank"]

    def reseed(self, device: Any, drawn: Sequence[int] | None) -> None:
        """Let a step of another process than the main one draw what it drew there, or what is said."""
        rank, iteration = drawn or (self.rank, self._step["iteration"])
        if rank or drawn:
            base = derived_seed(self.seed, "train", self._step["epoch"], rank)
            StepSeeds(base, device).seed(iteration)


class _Same(Dataset):
    """One batch, as often as wanted."""

    def __init__(self, batch: Any, count: int) -> None:
        self._batch, self._count = batch, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, _index: int) -> Any:
        return self._batch


class CapsuleProbe(StepProbe):
    """Looks into the step of a file, whose batch it registers in place of the script's loaders.

    Args:
        plan: what to do in the step.
        start: the file.
        capsule: what it holds.
    """

    def __init__(self, plan: Plan, start: Start, capsule: Capsule) -> None:
        super().__init__(plan, start, capsule.recorded())
        self._capsule, self._owner, self._joined_by = capsule, None, None

    @property
    def owner(self) -> Any:
        """The trainer."""
        return self._owner

    @owner.setter
    def owner(self, owner: Any) -> None:
        self._owner = owner
        register = owner.register_loader

        def register_step(train_loader: Any, val_loader: Any = None) -> None:
            self._joined_by, loader = train_loader, self._capsule.loader(self._plan.batch)
            of_sets = dict.fromkeys(val_loader, loader) if isinstance(val_loader, Mapping) else loader
            register(loader, None if val_loader is None else of_sets)

        owner.register_loader = register_step

    def _seeded(self) -> list[SampleIndex]:
        """Those of the file; a batch that takes the place of its own is made of fewer."""
        return [] if self._plan.batch else self._capsule.samples

    @property
    def _loader(self) -> Any:
        """The script's own, whose batch lies in the file."""
        return self._joined_by

    def before_train_step(self, epoch: int, iteration: int, data_dict: Any) -> None:
        """Begin to look, if this is the step."""
        if self._capsule.rank:
            refuse_exchange(self._plan, self.owner)
        self.owner.train_step = refusing_exchanges(self._plan, self.owner.train_step)
        self._capsule.reseed(self.owner.device, self._plan.drawn)
        if self._plan.in_double:
            self.owner.model.double()
            data_dict.update(map_leaves(_in_double, data_dict))
        super().before_train_step(epoch, iteration, data_dict)

    def after_backward(self, epoch: int, iteration: int, data: Any, output: Any, results: Any) -> None:
        """Look at the gradients; in float64 that is all, since an optimizer goes on in its own precision alone."""
        super().after_backward(epoch, iteration, data, output, results)
        if self._plan.in_double:
            self.after_train_step(epoch, iteration, data, output, results)


def _in_double(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf
