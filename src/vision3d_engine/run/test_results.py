"""The results of a test: which test they are of, and where an attempt goes on."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from vision3d_engine.core.plain import to_plain
from vision3d_engine.data.resumable_loader import ResumableLoader
from vision3d_engine.loop.case_results import CaseResults
from vision3d_engine.results.folder import ResultsFolder
from vision3d_engine.results.journal import Journals
from vision3d_engine.run.session import Session

# Settings of the engine that change the results of a test.
_MATTER = ("precision", "tf32", "means")
# Sections of a config that are the engine's.
_OWN = {"exp", "trainer", "optimizer", "scheduler"}
# Parts of a loader's fingerprint that count what one step of all processes takes.
_OF_ALL = ("global_batch", "samples_per_step", "batches_per_step")


@contextmanager
def opened_results(
    session: Session,
    tester: str,
    name: str,
    checkpoint: Path | None,
    loader: ResumableLoader,
    worst_by: tuple[str, str] | None = None,
) -> Iterator[CaseResults]:
    """Open the results folder of a run for one attempt at a test; to be called by all processes.

    Args:
        session: settings, processes, folders, log.
        tester: name of the tester's class.
        name: what the test is called, which its folder and tables are too; may be empty.
        checkpoint: the file whose weights are tested; None where the engine has loaded none.
        loader: the data.
        worst_by: by which number cases are the worst, which is noted in the results.

    Raises:
        FolderError: when the folder is in use, or holds results that this test may neither replace nor go on with.
    """
    folder, world, settings = ResultsFolder(session.folders.output, name), session.world, session.settings.trainer
    about = {"checkpoint": None if checkpoint is None else str(checkpoint), "worst_by": worst_by}
    with folder.locked() if world.is_main else nullcontext():
        attempt = None
        if world.is_main:
            identity = {"tester": tester, "checkpoint": _digest(checkpoint), **_identity(session, loader)}
            resume = settings.resume or world.restarts > 0
            folder.open(identity, session.logger.warn, resume=resume, overwrite=settings.overwrite)
            attempt = Journals(folder.progress).attempts + 1
        attempt = world.gather(attempt)[0]
        results = CaseResults(folder, world, attempt, _total(loader, settings.limit_batches, world.size), about)
        if attempt > 1:
            session.logger.info(f"going on with the test in '{folder.path}': {results.former} batches are done")
        with results.writing():
            yield results


def _digest(path: Path | None) -> str | None:
    """Return the SHA-256 of a file."""
    if path is None:
        return None
    with Path(path).open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _identity(session: Session, loader: ResumableLoader) -> dict[str, Any]:
    """Return settings and data that results depend on; the number of processes where data are not shared out by us."""
    trainer, size = session.settings.trainer, session.world.size
    settings = {f"trainer.{name}": getattr(trainer, name) for name in _MATTER}
    data = {key: value // size if key in _OF_ALL and value else value for key, value in loader.fingerprint().items()}
    if loader.total_length is None:
        data["processes"] = size
    if trainer.limit_batches is not None:
        data["limit_batches"] = trainer.limit_batches * size
    own = {key: value for key, value in _as_dict(session.cfg).items() if key not in _OWN}
    return {"exp.seed": session.settings.exp.seed, **settings, **_flat("data", data), **_flat("", own)}


def _as_dict(cfg: Any) -> Mapping[str, Any]:
    plain = {} if cfg is None else to_plain(cfg)
    return plain if isinstance(plain, Mapping) else {}


def _flat(path: str, value: Any) -> dict[str, Any]:
    """Return the numbers and texts of nested dicts by their dotted names; other objects say nothing of themselves."""
    if isinstance(value, Mapping):
        parts = ((f"{path}.{key}" if path else str(key), item) for key, item in value.items())
        return {name: leaf for start, item in parts for name, leaf in _flat(start, item).items()}
    if isinstance(value, list):
        return {path: str(value)}
    return {path: value} if isinstance(value, bool | int | float | str | None) else {}


def _total(loader: ResumableLoader, limit: int | None, size: int) -> int | None:
    """Return how many batches all processes walk together; None where that is not known."""
    total = loader.total_length
    return total if total is None or limit is None else min(total, limit * size)
