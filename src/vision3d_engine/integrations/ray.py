"""Ray Train: the script of a trainer as the loop of a ``TorchTrainer``."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from vision3d_engine.core.errors import ConfigError, EngineError
from vision3d_engine.distributed.processes import is_master, master_only
from vision3d_engine.loop.hooks import Hook
from vision3d_engine.loop.result_checks import as_numbers
from vision3d_engine.trainers.base import BaseTrainer


def report(trainer: BaseTrainer) -> None:
    """Report every validation to Ray Train, with its ``checkpoint.pth``; outside of Ray do nothing.

    To be called by all workers, before `run`. When Ray starts the workers again after a failure, the run goes on from
    its folder, in mid-epoch and to the same bits; when the folder is gone, from the checkpoint that Ray has kept. So
    ``exp.output_dir`` should be an absolute path that all workers see, as Ray's ``storage_path`` is.

    A report waits for the file of the checkpoint, for its upload, and for all workers; a step waits for nothing.

    Raises:
        ConfigError: when ``trainer.resume`` is false, so that a worker that is started again could not go on.
        EngineError: when Ray is not installed.
    """
    ray_train = _ray_train()
    if not _is_worker(ray_train):
        trainer.log("this process is no worker of Ray Train: nothing is reported to it")
        return
    if not trainer.args.resume:
        message = "trainer.resume is false, so a worker that Ray starts again could not go on; set it to true"
        raise ConfigError(message)
    _fetch(ray_train.get_checkpoint(), trainer.finish_saving())
    trainer.add_hook(_Report(ray_train))


class _Report(Hook):
    """Keeps the numbers of a validation until its checkpoint is saved, and reports both."""

    def __init__(self, ray_train: Any) -> None:
        self._ray_train = ray_train
        self._metrics: dict[str, Any] | None = None
        self._reported = 0

    def after_val_epoch(self, epoch: int, summary_dict: dict[str, Any]) -> None:
        self._metrics = {**as_numbers(summary_dict), "epoch": epoch, "total_steps": self.owner.total_steps}

    def before_train_epoch(self, epoch: int) -> None:
        self._send()

    def after_train(self) -> None:
        self._send()

    def _send(self) -> None:
        metrics, self._metrics = self._metrics, None
        if metrics is None:
            return
        path = self.owner.finish_saving()
        if not is_master() or not self._is_new(path):
            self._ray_train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / path.name).symlink_to(path.absolute())
            self._ray_train.report(metrics, checkpoint=self._ray_train.Checkpoint.from_directory(folder))

    def _is_new(self, path: Path) -> bool:
        """Tell whether the file is there, and another one than at the last report."""
        last, self._reported = self._reported, path.stat().st_mtime_ns if path.exists() else 0
        return self._reported > last


def _ray_train() -> Any:
    try:
        import ray.train  # pyright: ignore[reportMissingImports]  an extra
    except ImportError as error:
        message = f"Ray Train cannot be imported ({error}); install it: pip install 'vision3d-engine[ray]'"
        raise EngineError(message) from error
    return ray.train


def _is_worker(ray_train: Any) -> bool:
    """Tell whether Ray Train has started this process."""
    try:
        ray_train.get_context()
    except RuntimeError:
        return False
    return True


@master_only
def _fetch(checkpoint: Any, path: Path) -> None:
    """Put the file of Ray's checkpoint where a resume looks for it, unless the run folder has one."""
    if checkpoint is None or path.exists():
        return
    with checkpoint.as_directory() as folder:
        if (found := Path(folder) / path.name).exists():
            shutil.copy(found, path)
