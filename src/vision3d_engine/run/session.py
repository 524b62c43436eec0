"""What a trainer or tester runs in: settings, processes, folders, log, writers. Made by its constructor."""

import contextlib
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from typing import Any

import torch

from vision3d_engine.core.cli import Arguments, command_line, forced
from vision3d_engine.core.config import read_settings, refuse_unread
from vision3d_engine.core.durations import parse_duration
from vision3d_engine.core.errors import ProcessError, add_note
from vision3d_engine.core.seeding import seed_everything, set_cudnn_deterministic, set_tf32
from vision3d_engine.core.tracebacks import ShortTracebacks, cause_of
from vision3d_engine.data.loader_hints import LoaderHints
from vision3d_engine.data.prefetcher import HostTensors
from vision3d_engine.debug.debugger import Debugger
from vision3d_engine.debug.finite import NonFiniteNotes
from vision3d_engine.debug.hang_watch import HangWatch
from vision3d_engine.debug.memory_snapshot import memory_snapshot
from vision3d_engine.distributed.coordination.reductions import MainNumbers
from vision3d_engine.distributed.launch.launcher import names_debugger, wants_full_tracebacks
from vision3d_engine.distributed.parallel.base import Parallel
from vision3d_engine.distributed.parallel.replica_check import ReplicaCheck
from vision3d_engine.distributed.world import World, join_world
from vision3d_engine.endpoints.context_manager import claim_context_manager
from vision3d_engine.logs.logger import Logger, set_logger
from vision3d_engine.loop.captures import Captures
from vision3d_engine.loop.context import PassContext
from vision3d_engine.loop.counters import Counters
from vision3d_engine.loop.hooks import Hooks
from vision3d_engine.loop.parameter_statistics import ParameterStatistics
from vision3d_engine.loop.profiled_steps import ProfiledSteps
from vision3d_engine.loop.progress import Progress
from vision3d_engine.loop.registered_metrics import Metrics
from vision3d_engine.loop.untrained import UntrainedParameters
from vision3d_engine.metrics.epoch_times import EpochTimes
from vision3d_engine.run.run_folder import Folders
from vision3d_engine.run.tryout import tried_out
from vision3d_engine.update.precision import choose_precision
from vision3d_engine.writers.files import FilesWriter
from vision3d_engine.writers.metric_writers import MetricWriters
from vision3d_engine.writers.step_values import StepValuesWriter

Redirection = Callable[[Any, World], Any]

STOPPED = "stopped by"
"""With what the line of a log begins that says which error has stopped a run."""
REDIRECTIONS: list[Redirection] = []
"""What puts other settings in force than those that a script was given, for tools that run it elsewhere."""


class Session:
    """The surroundings of one trainer or tester. Folders and text log are open when it is made, the writers are not.

    Args:
        cfg: the user's config object, of any kind.
        role: ``"train"`` or ``"test"``, the first word of the log file's name.
        given: settings that a constructor was called with; they win over the config, and the command line over them.

    Attributes:
        planned: the settings as they are given.
        settings: those in force, which differ from them in a try-out.
        debugger: opens python's debugger.

    Raises:
        ConfigError: for wrong settings or flags.
        FolderError: when a folder cannot be made or written.
    """

    def __init__(self, cfg: Any, role: str, given: Mapping[str, Any] | None = None) -> None:
        self.cfg = cfg
        self.arguments = Arguments()
        overrides = {key: value for key, value in (given or {}).items() if value is not None}
        overrides |= self.arguments.engine_values() | forced("trainer")
        self.planned, warnings = read_settings(cfg, overrides, forced("exp"))
        self.world = join_world(self.planned.trainer.device, self.planned.trainer.collective_timeout_s)
        self.settings = tried_out(reduce(self._redirected, REDIRECTIONS, self.planned), self.world)
        self.arguments.fill(self.settings.trainer.model_dump())
        self.folders = Folders(self.settings.exp, self.planned.exp)
        self.logger = self._open_log(role)
        self._endpoints = claim_context_manager()
        self.writers = self._make_writers()
        self.debugger = Debugger(self.world, self.logger.log)
        self._announce(warnings)
        seed_everything(self.settings.exp.seed + self.world.rank)
        set_cudnn_deterministic(self.settings.trainer.cudnn_deterministic)
        set_tf32(self.settings.trainer.tf32 and self.world.device.type == "cuda")

    def _redirected(self, settings: Any, redirect: Redirection) -> Any:
        return redirect(settings, self.world)

    def _open_log(self, role: str) -> Logger:
        log_file = self.folders.logs / time.strftime(f"{role}-%Y%m%d-%H%M%S.log")
        error_file = None if self.world.is_main else self.folders.logs / f"rank{self.world.rank}.log"
        logger = Logger(log_file, is_main=self.world.is_main, error_file=error_file)
        set_logger(logger)
        return logger

    def _make_writers(self) -> MetricWriters:
        folders = self.folders
        files = FilesWriter(folders.output / "files", self.settings.trainer.write_files)
        jsonl = folders.output / "metrics.jsonl"
        further: dict[str, Any] = {"files": files, "steps": StepValuesWriter(folders.steps, processes=self.world.size)}
        return MetricWriters(folders.events, jsonl, self.logger, enabled=self.world.is_main, **further)

    def _announce(self, warnings: list[str]) -> None:
        """Say where the run lives and what it runs on."""
        self.logger.info(f"run folder: {self.folders.output} | {self.world.device}, {self.world.size} process(es)")
        self.logger.debug(f"command: {command_line()}")
        for warning in warnings:
            self.logger.warn(f"{warning} (the key is ignored)")
        for note in self.world.notes if self.world.is_main else ():
            self.logger.warn(note)

    def pass_context(self, parallel: Parallel, hooks: Hooks) -> PassContext:
        """Return what the passes of a trainer or tester share."""
        trainer = self.settings.trainer
        progress = Progress(counts_samples=trainer.means == "samples")
        counters = Counters(progress, self.world.named_sums(), self.world.size, trainer.curve_axis)
        times = EpochTimes(self.world.device, lambda: self.debugger.times_open)
        hooks.measure(times.in_steps)
        outlets: dict[str, Any] = {"progress": progress, "counters": counters, "writers": self.writers}
        return PassContext(
            settings=trainer,
            planned=self.planned.trainer,
            seed=self.settings.exp.seed,
            world=self.world,
            parallel=parallel,
            hooks=hooks,
            precision=choose_precision(trainer.precision, self.world.device, trainer.nonfinite == "skip"),
            writers=self.writers,
            logger=self.logger,
            progress=progress,
            counters=counters,
            metrics=Metrics(self.world, self.logger),
            main_numbers=MainNumbers(self.world.gather, self.logger.warn),
            replicas=ReplicaCheck(self.world, trainer.replica_check, self.logger.warn),
            hints=LoaderHints(self.logger.warn),
            host_tensors=HostTensors(self.logger.warn),
            endpoints=self._endpoints,
            captures=Captures(
                self._endpoints, **outlets, logger=self.logger, is_main=self.world.is_main, watch=times.in_steps
            ),
            parameter_statistics=ParameterStatistics(trainer, self.world, parallel, **outlets),
            untrained=UntrainedParameters(self.world, parallel, progress, self.logger.warn),
            nonfinite=NonFiniteNotes(self.folders.debug, self.world.is_main),
            debug_folder=self.folders.debug,
            profiled=ProfiledSteps(trainer.profile, progress, self.world, self.folders.debug, self.logger.log),
            times=times,
        )

    def check_arguments(self) -> None:
        """Warn of flags that nobody knows; raise `ConfigError` for one that is nearly a known flag or setting."""
        for word in self.arguments.check():
            refuse_unread(word)
            self.logger.warn(
                f"unknown argument {word} is ignored by the engine (for a parser of your own: see ignore_command_line)"
            )

    @contextlib.contextmanager
    def running(self, where: Callable[[], str]) -> Iterator[None]:
        """Run with open writers and the settings' autograd mode; close the writers and say what has stopped the run.

        The text log stays open for what the script still has to say; it is closed with the last reference to it.

        Args:
            where: returns the position of this process.
        """
        trainer = self.settings.trainer
        is_on, skips = trainer.debug, trainer.precision == "fp16" or trainer.nonfinite == "skip"
        anomaly = (True, not skips) if is_on else (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled())
        try:
            with (
                self.writers.running(),
                self._endpoints.active(),
                torch.enable_grad(),
                torch.autograd.set_detect_anomaly(*anomaly),
                self.debugger.at_breakpoints(not names_debugger()),
            ):
                yield
        except ProcessError as error:  # said already; the way here through the transport explains nothing
            raise error.with_traceback(None) from None
        except Exception as error:
            if not getattr(error, "__notes__", ()):  # a step says more than that
                add_note(error, f"the run was in {where()}")
            self._log_failure(error)
            raise

    def _log_failure(self, error: Exception) -> None:
        """Say what has stopped the run; the traceback goes into the file only, since python prints it."""
        self.logger.log(f"{STOPPED} {cause_of(error)} ({'; '.join(error.__notes__)})", "ERROR")
        self.logger.log(f"what it has said and its whole traceback are in '{self.folders.logs}'", "INFO")
        level = "DEBUG" if self.world.is_main else "WARNING"
        self.logger.log("".join(traceback.format_exception(error)), level)

    def short_tracebacks(self) -> ShortTracebacks:
        """Return what lets errors show the user's own lines; the log has them all, and so does who asks for them."""
        return ShortTracebacks(not wants_full_tracebacks())

    @contextlib.contextmanager
    def watching(self, where: Callable[[], str]) -> Iterator[None]:
        """Notice what goes wrong while a block runs; to be called by all processes.

        That is: other processes that fail, no step for long, and, with ``--pdb``, errors of its own.

        Args:
            where: returns the position of this process; called by a thread.

        Raises:
            ProcessError: when another process has failed, died, or does not come.
        """
        trainer = self.settings.trainer
        detector = self.world.failure_detector(trainer.heartbeat_s, trainer.collective_timeout_s)
        failures, errors = detector.watching(where, self.logger.log), self.debugger.after_errors(trainer.pdb)
        with self._hang_watch().watching(where), failures, errors, self._memory_snapshot():
            yield

    def _memory_snapshot(self) -> contextlib.AbstractContextManager[None]:
        """Return what records the memory of the device, if that is asked for."""
        path = self.folders.debug / f"memory-rank{self.world.rank}.pickle"
        is_wanted = self.settings.trainer.memory_snapshot
        return memory_snapshot(self.world.device, path, self.logger.log) if is_wanted else contextlib.nullcontext()

    def _hang_watch(self) -> HangWatch:
        trainer = self.settings.trainer
        return HangWatch(
            parse_duration(trainer.hang_after) if trainer.hang_after else None,
            ends_process=trainer.on_hang == "stop",
            folder=self.folders.debug,
            rank=self.world.rank,
            say=self.logger.log,
            is_paused=lambda: self.debugger.is_open,
        )
