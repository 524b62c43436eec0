"""What a run writes down of itself: ``config.yaml``, the settings in force, and ``env.json``, where it ran."""

import contextlib
import hashlib
import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vision3d_engine.core.cli import command_line
from vision3d_engine.core.files import atomic_write
from vision3d_engine.core.plain import printable, to_plain
from vision3d_engine.data.loader_record import record_of
from vision3d_engine.data.resumable_loader import ResumableLoader
from vision3d_engine.run.session import Session

_ENVIRONMENT = "env.json"
# What epochs are made of, by what schedules follow: passes over the data, or iterations of an endless stream.
_COUNTS = {"epoch": "epochs", "update": "iterations"}
_PACKAGES = ("torch", "numpy", "vision3d-engine")


def write_record(session: Session, trainer: Any, data: Mapping[str, ResumableLoader]) -> None:
    """Write ``config.yaml`` (the user's config and the settings in force) and ``env.json`` into the run folder.

    Args:
        session: the surroundings of the run.
        trainer: whose run it is.
        data: its loaders by title.
    """
    if not session.world.is_main:
        return
    import yaml

    record = to_plain(session.cfg) if session.cfg is not None else {}
    record |= session.settings.model_dump(mode="json")
    folder, environment = session.folders.output, _environment(session)
    counts = _COUNTS[trainer._schedule_follows]  # noqa: SLF001  the engine's own
    began = {"began_behind": trainer.total_steps}
    environment["trainer"] = {"class": type(trainer).__name__, "counts": counts, **began}
    environment["script"] = _checksums(type(trainer))
    environment["data"] = {title: record_of(loader) for title, loader in data.items()}
    try:
        _write_text(folder / "config.yaml", yaml.safe_dump(printable(record), sort_keys=False))
        _write_text(folder / _ENVIRONMENT, json.dumps(environment, indent=2, default=str) + "\n")
    except OSError as error:  # a full disk costs the record, not the run
        session.logger.warn(f"config.yaml and {_ENVIRONMENT} are not written: {error.strerror or error}")


def recorded_launch(folder: Path) -> str | None:
    """Return the name of the launch that has started the run in a folder, or None."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads((folder / _ENVIRONMENT).read_text()).get("launch")
    return None


def _environment(session: Session) -> dict[str, Any]:
    return {
        "command": command_line(),
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "host": platform.node(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        **_hardware(session.world.device),
        "processes": session.world.size,
        "launch": session.world.launch,
        "seed": session.settings.exp.seed,
        "git": _git_state(),
    }


def _checksums(kind: type) -> dict[str, str]:
    """Return a checksum of the script, and of the file that defines its trainer, by name; notebooks have none."""
    files = [getattr(sys.modules.get(name), "__file__", None) for name in ("__main__", kind.__module__)]
    found = {}
    for path in (Path(file) for file in files if file):
        with contextlib.suppress(OSError):
            found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return found


def _hardware(device: torch.device) -> dict[str, Any]:
    """Return what kernels, and so the last bits of their results, depend on."""
    found = {"device": str(device), "cpu": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return found


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())


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
