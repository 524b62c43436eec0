"""What a trainer or tester runs in: settings, processes, folders, logs. Opened by its constructor, closed by `run`."""

import contextlib
import json
import platform
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from vision3d_engine.core.cli import Arguments, command_line, forced
from vision3d_engine.core.config import read_settings
from vision3d_engine.core.errors import ProcessError
from vision3d_engine.core.files import atomic_write, make_folder
from vision3d_engine.core.locks import FolderLock
from vision3d_engine.core.plain import to_plain
from vision3d_engine.core.seeding import seed_everything, set_cudnn_deterministic
from vision3d_engine.distributed.world import join_world
from vision3d_engine.logs.logger import Logger, set_logger
from vision3d_engine.writers.metric_writers import MetricWriters

_RECORD = "env.json"
_PACKAGES = ("torch", "numpy", "vision3d-engine")


class Folders:
    """The folders of a run; by default inside ``exp.output_dir``, made when missing."""

    def __init__(self, exp: Any) -> None:
        self.output = make_folder(exp.output_dir)
        self.checkpoints = make_folder(exp.checkpoint_dir or self.output / "checkpoints")
        self.logs = make_folder(exp.log_dir or self.output / "logs")
        self.events = Path(exp.event_dir or self.output / "events")


class Session:
    """The surroundings of one trainer or tester.

    Args:
        cfg: the user's config object, of any kind.
        role: ``"train"`` or ``"test"``, the first word of the log file's name.
        given: settings that a constructor was called with; they win over the config, and the command line over them.

    Raises:
        ConfigError: for wrong settings or flags.
        FolderError: when a folder cannot be made or written.
    """

    def __init__(self, cfg: Any, role: str, given: Mapping[str, Any] | None = None) -> None:
        self._cfg = cfg
        self.arguments = Arguments()
        overrides = {key: value for key, value in (given or {}).items() if value is not None}
        overrides |= self.arguments.engine_values() | forced("trainer")
        self.settings, warnings = read_settings(cfg, overrides, forced("exp"))
        self.arguments.fill(self.settings.trainer.model_dump())
        trainer = self.settings.trainer
        self.world = join_world(trainer.device, trainer.collective_timeout_s)
        self.folders = Folders(self.settings.exp)
        log_file = self.folders.logs / time.strftime(f"{role}-%Y%m%d-%H%M%S.log")
        error_file = None if self.world.is_main else self.folders.logs / f"rank{self.world.rank}.log"
        self.logger = Logger(log_file, is_main=self.world.is_main, error_file=error_file)
        set_logger(self.logger)
        jsonl_file = self.folders.output / "metrics.jsonl"
        self.writers = MetricWriters(self.folders.events, jsonl_file, self.logger, enabled=self.world.is_main)
        self._announce(warnings)
        seed_everything(self.settings.exp.seed + self.world.rank)
        set_cudnn_deterministic(self.settings.trainer.cudnn_deterministic)

    def _announce(self, warnings: list[str]) -> None:
        """Say where the run lives and what it runs on."""
        self.logger.info(f"run folder: {self.folders.output} | {self.world.device}, {self.world.size} process(es)")
        self.logger.debug(f"command: {command_line()}")
        for warning in warnings:
            self.logger.warn(f"{warning} (the key is ignored)")
        for note in self.world.notes if self.world.is_main else ():
            self.logger.warn(note)

    def write_records(self) -> None:
        """Write ``config.yaml`` (the user's config and the settings in force) and ``env.json`` into the run folder."""
        if not self.world.is_main:
            return
        import yaml

        record = to_plain(self._cfg) if self._cfg is not None else {}
        record |= self.settings.model_dump(mode="json")
        _write_text(self.folders.output / "config.yaml", yaml.safe_dump(_printable(record), sort_keys=False))
        _write_text(self.folders.output / _RECORD, json.dumps(self._environment(), indent=2) + "\n")

    def _environment(self) -> dict[str, Any]:
        return {
            "command": command_line(),
            "time": time.strftime("%Y-%m-%d %H:%M:%S"),
            "host": platform.node(),
            "python": platform.python_version(),
            "packages": {name: _version(name) for name in _PACKAGES},
            "device": str(self.world.device),
            "processes": self.world.size,
            "launch": self.world.launch,
            "seed": self.settings.exp.seed,
            "git": _git_state(),
        }

    def check_arguments(self) -> None:
        """Warn of flags that nobody knows; raise `ConfigError` for one that is nearly a known flag."""
        for word in self.arguments.check():
            self.logger.warn(f"unknown argument {word} is ignored")

    @contextlib.contextmanager
    def owning_folder(self) -> Iterator[None]:
        """Keep other runs out of the run folder; the main process holds it for all.

        Raises:
            FolderInUseError: naming the process that works there.
        """
        with FolderLock(self.folders.output) if self.world.is_main else contextlib.nullcontext():
            yield

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run with the settings' autograd mode; at the end put it back and close the writers, on errors too.

        The text log stays open for what the script still has to say; it is closed with the last reference to it.
        """
        anomaly = self.settings.trainer.debug or torch.is_anomaly_enabled()
        try:
            with self.writers.running(), torch.enable_grad(), torch.autograd.set_detect_anomaly(anomaly):
                yield
        except ProcessError as error:  # said by the watch; the way here through the transport explains nothing
            raise error.with_traceback(None) from None
        except Exception as error:
            self._log_failure(error)
            raise

    def _log_failure(self, error: Exception) -> None:
        """Say what has stopped the run; the traceback goes into the file only, since python prints it."""
        self.logger.log(f"stopped by {type(error).__name__}: {error}", "ERROR")
        level = "DEBUG" if self.world.is_main else "WARNING"
        self.logger.log("".join(traceback.format_exception(error)), level)

    def watching(self, where: Callable[[], str]) -> AbstractContextManager[None]:
        """Watch over the other processes while a block runs; to be called by all of them.

        Args:
            where: returns the position of this process; called by a thread.

        Raises:
            ProcessError: when another process has failed, died, or does not come.
        """
        trainer = self.settings.trainer
        watch = self.world.watch(trainer.heartbeat_s, trainer.collective_timeout_s)
        return watch.over(where, self.logger.error)

    def recorded_launch(self) -> str | None:
        """Return the name of the launch that has begun the run in this folder, or None."""
        with contextlib.suppress(OSError, ValueError):
            return json.loads((self.folders.output / _RECORD).read_text()).get("launch")
        return None


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())


def _printable(value: Any) -> Any:
    """Turn what YAML cannot hold (functions, tensors) into text."""
    if isinstance(value, dict):
        return {str(key): _printable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_printable(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _git_state() -> dict[str, Any] | None:
    """Return commit and cleanness of the repository that the command runs in, or None outside one."""
    try:
        commit = _git("rev-parse", "HEAD")
        return {"commit": commit, "modified": bool(_git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*words: str) -> str:
    finished = subprocess.run(["git", *words], capture_output=True, text=True, check=True, timeout=10)  # noqa: S603, S607
    return finished.stdout.strip()
