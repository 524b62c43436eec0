"""Old import paths, for scripts of the 2022 engine: ``from vision3d_engine.utils.<module> import <name>`` works.

Every old module is a door to the places where its names live now; nothing inside the engine uses this file.
"""

import importlib
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from vision3d_engine.core.errors import EngineError, ResultError, listed
from vision3d_engine.core.files import make_folder
from vision3d_engine.distributed.processes import master_only

_HOMES: dict[str, dict[str, str]] = {
    "average_meter": {"AverageMeter": "metrics.average_meter"},
    "checkpoint": {"CheckpointManager": "checkpoint.manager", "load_state_dict": "utils"},
    "context_manager": dict.fromkeys(
        ("ContextManager", "clear_context_manager", "get_context_manager"), "endpoints.context_manager"
    ),
    "dataloader": {
        "CycleLoader": "utils",
        "build_dataloader": "data.dataloader",
        "reset_seed_worker_init_fn": "core.seeding:seed_worker",
    },
    "distributed": dict.fromkeys(
        (
            "all_reduce_tensor",
            "all_reduce_tensors",
            "get_local_rank",
            "get_rank",
            "get_world_size",
            "is_distributed",
            "is_master",
            "master_only",
            "setup_distributed",
        ),
        "distributed.processes",
    ),
    "engine": {"setup_engine": "core.seeding"},
    "io": dict.fromkeys(
        ("dump_pickle", "ensure_dir", "load_pickle", "readlines", "write_correspondences", "writelines"), "utils"
    ),
    "logger": dict.fromkeys(("Logger", "get_logger"), "logs.logger"),
    "misc": {
        "deprecated": "utils",
        "get_format_strings": "logs.log_line",
        "get_log_string": "logs.log_line",
        "get_print_format": "logs.log_line",
        "load_ext": "utils",
    },
    "optimizer": {
        "build_optimizer": "optim.optimizer",
        **dict.fromkeys(
            (
                "WarmUpCosineAnnealingFunction",
                "WarmUpExponentialAnnealingFunction",
                "WarmUpLinearAnnealingFunction",
                "build_scheduler",
                "build_warmup_cosine_lr_scheduler",
                "build_warmup_lr_scheduler",
            ),
            "optim.scheduler",
        ),
    },
    "parser": dict.fromkeys(("add_argument", "add_argument_group", "get_parser", "parse_args"), "core.cli"),
    "profiling": dict.fromkeys(
        ("CpuRuntimeProfiler", "CudaRuntimeProfiler", "profile_cpu_runtime", "profile_cuda_runtime"), "debug.profiling"
    ),
    "summary_board": {"SummaryBoard": "metrics.summary_board", "check_meter": "utils"},
    "tensor": {
        "array_to_tensor": "core.tree:to_tensor",
        "move_to_cpu": "core.tree:to_cpu",
        "move_to_cuda": "utils",
        "tensor_to_array": "core.tree:to_array",
    },
    "timer": {"Timer": "metrics.timer"},
}


class _OldModule(ModuleType):
    """A module whose names are fetched from their new homes when they are first used."""

    def __init__(self, name: str, homes: dict[str, str]) -> None:
        super().__init__(f"{__name__}.{name}", f"Old path of: {', '.join(homes)}.")
        self._homes = homes
        self.__all__ = list(homes)

    def __getattr__(self, name: str) -> Any:
        if name not in self._homes:
            message = f"module '{self.__name__}' has no attribute '{name}' (it has: {', '.join(self._homes)})"
            raise AttributeError(message)
        home, _, new_name = self._homes[name].partition(":")
        value = getattr(importlib.import_module(f"vision3d_engine.{home}"), new_name or name)
        setattr(self, name, value)
        return value

    def __dir__(self) -> Iterable[str]:
        return self.__all__


def _open_doors() -> None:
    for name, homes in _HOMES.items():
        module = _OldModule(name, homes)
        sys.modules[module.__name__] = module
        globals()[name] = module


# ------------------------------------------------------------------------ small tools that the engine itself lacks


def load_pickle(filename: str | Path) -> Any:
    """Return what a pickle file holds; only for files that you trust, since loading one may run code."""
    with Path(filename).open("rb") as file:
        return pickle.load(file)  # noqa: S301  the caller's own file, by name and purpose


def dump_pickle(data: Any, filename: str | Path) -> None:
    """Write an object into a pickle file."""
    with Path(filename).open("wb") as file:
        pickle.dump(data, file)


def readlines(filename: str | Path) -> list[str]:
    """Return the lines of a text file without surrounding white space."""
    return [line.strip() for line in Path(filename).read_text(encoding="utf-8").splitlines()]


def writelines(lines: Iterable[str], filename: str | Path, mode: str = "w") -> None:
    """Write lines into a text file, each ended by one newline."""
    with Path(filename).open(mode, encoding="utf-8") as file:
        file.writelines(line.removesuffix("\n") + "\n" for line in lines)


@master_only
def ensure_dir(path: str | Path) -> None:
    """Make a folder and its parents when missing; raise `FolderError` when that is impossible."""
    make_folder(path)


def write_correspondences(file_name: str | Path, src_corr_points: Any, tgt_corr_points: Any) -> None:
    """Write point pairs ``(N, 3)``, ``(N, 3)`` as line segments into a Wavefront .obj file."""
    path = Path(file_name)
    path = path if path.suffix == ".obj" else path.with_name(path.name + ".obj")
    ends = (point for pair in zip(src_corr_points, tgt_corr_points, strict=True) for point in pair)
    vertices = ["v {:.6f} {:.6f} {:.6f}".format(*point) for point in ends]
    edges = [f"l {2 * index + 1} {2 * index + 2}" for index in range(len(vertices) // 2)]
    writelines([*vertices, *edges], path)


class CycleLoader:
    """The batches of a loader without end; passes are numbered from ``epoch + 1`` on, for a sampler's ``set_epoch``.

    An empty loader raises StopIteration. `IterBasedTrainer` needs no such loader, and resumes exactly without it.
    """

    def __init__(self, data_loader: Any, epoch: int) -> None:
        self.data_loader = data_loader
        self._epoch = epoch
        self._batches: Iterator[Any] = iter(())

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        for batch in self._batches:
            return batch
        self._epoch += 1
        if announce := getattr(getattr(self.data_loader, "sampler", None), "set_epoch", None):
            announce(self._epoch)
        self._batches = iter(self.data_loader)
        return next(self._batches)


def check_meter(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method of a class with a ``meter_dict`` refuse a key that has no meter."""

    @wraps(method)
    def wrapper(self: Any, key: str, *args: Any, **kwargs: Any) -> Any:
        if key not in self.meter_dict:
            message = f"no meter '{key}' (meters: {listed(self.meter_dict)})"
            raise ResultError(message)
        return method(self, key, *args, **kwargs)

    return wrapper


def deprecated(replacement: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function raise an error that names its replacement."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:  # noqa: ARG001  any call is refused
            message = f"{function.__name__} is deprecated; use {replacement} instead"
            raise EngineError(message)

        return wrapper

    return decorate


def load_ext(name: str, functions: Iterable[str]) -> ModuleType:
    """Import a compiled extension and check that it has the functions."""
    module = importlib.import_module(name)
    missing = [function for function in functions if not hasattr(module, function)]
    if missing:
        message = f"the extension '{name}' lacks {', '.join(missing)}; build it again"
        raise EngineError(message)
    return module


def move_to_cuda(nest: Any) -> Any:
    """Move every tensor of a nest to this process's accelerator; without one the nest stays as it is."""
    from vision3d_engine.core.tree import to_device
    from vision3d_engine.distributed.processes import current_device

    device = current_device()
    return nest if device.type == "cpu" else to_device(nest, device)


def load_state_dict(model: Any, state_dict: Any, strict: bool = False) -> None:
    """Load weights into a model; keys that do not fit are an error when strict, else a warning."""
    from vision3d_engine.checkpoint.loading import load_model
    from vision3d_engine.logs.logger import get_logger

    for line in load_model(model, state_dict, "state_dict", strict=strict):
        get_logger().warn(f"load_state_dict: {line}")


_open_doors()
