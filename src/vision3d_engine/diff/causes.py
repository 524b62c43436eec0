"""The likeliest cause of a difference, in a sentence: the first rule that knows one has it."""

from collections.abc import Callable, Sequence
from pathlib import Path

from vision3d_engine.core.errors import listed, shortened
from vision3d_engine.diff.findings import Findings
from vision3d_engine.diff.rows import Row
from vision3d_engine.report.run_data import section

_MOST_NAMED = 3
_SHARES = ("processes", "trainer.grad_acc_steps", "trainer.uneven")
_KERNELS = ("python", "packages", "device", "cpu", "threads", "gpu", "cuda")
_SCHEDULES = ("sched", "optim", "lr", "rate", "warm", "max_epoch", "max_updates", "num_iters", "grad_acc")


def likeliest_cause(found: Findings) -> str:
    """Return what most likely lets the numbers differ, with the rows that say so."""
    return next(said for rule in _RULES if (said := rule(found)))


def _validation(found: Findings) -> str:
    if found.step is not None:
        return ""
    rows = [row for row in found.rows.data if row.name.startswith("validation")]
    known = f": {_named(rows)}" if rows else " hold something else, or val_step does"
    return f"all training steps are the same, so the validation data{known}"


def _order(found: Findings) -> str:
    if not found.is_other_batch or found.rows.named("exp.seed"):
        return ""
    rows = [*found.rows.named(*_SHARES), *_training(found)]
    return f"the batch holds other samples: {_named(rows) or 'the order comes from another version of the code'}"


def _rate(found: Findings) -> str:
    if found.rate is None or found.step == 1:
        return ""
    rows = [row for row in found.rows.settings if any(word in row.name.lower() for word in _SCHEDULES)]
    said = f"the learning rate: {found.rate.key} is {found.rate.a} and {found.rate.b} at the log line of step "
    return f"{said}{found.rate.step} ({_named(rows) or 'no setting tells why'})"


def _chance(found: Findings) -> str:
    rows = found.rows.named("exp.seed")
    said = "another seed, of which initial weights, order and all that samples and steps draw follow"
    return f"{said}: {_named(rows)}" if rows else ""


def _share(found: Findings) -> str:
    rows = found.rows.named(*_SHARES)
    return f"a step, or an update, has another share of the data: {_named(rows)}" if rows else ""


def _data(found: Findings) -> str:
    rows = _training(found)
    return f"other training data: {_named(rows)}" if rows else ""


def _settings(found: Findings) -> str:
    rows = found.rows.settings
    return f"{_same(found)}another setting: {_named(rows)}" if rows else ""


def _arguments(found: Findings) -> str:
    rows = [row for row in found.rows.command if not _is_folder(row, found)]
    return f"{_same(found)}another argument of the script: {_named(rows)}" if rows else ""


def _is_folder(row: Row, found: Findings) -> bool:
    """Tell whether an argument says only where each run lies."""
    folders = [Path(str(section(run.run.settings, "exp").get("output_dir"))) for run in (found.a, found.b)]
    given = [*zip(folders, row[1:], strict=True)]
    return all(value and any(map(str.isalpha, value)) and folder.match(value) for folder, value in given)


def _kernels(found: Findings) -> str:
    rows = found.rows.named(*_KERNELS)
    return f"{_same(found)}other kernels, or sums in another order: {_named(rows)}" if rows else ""


def _code(found: Findings) -> str:
    if script := found.rows.named("script"):
        return f"{_same(found)}another script: {_named(script)}"
    rows = found.rows.named("git", "trainer")
    return f"{_same(found)}other code: {_named(rows)}" if rows else ""


def _resume(found: Findings) -> str:
    resumed = [name for name, run in (("A", found.a), ("B", found.b)) if run.was_resumed]
    if len(resumed) != 1:
        return ""
    said = f"{_same(found)}{resumed[0]} was resumed: something that no checkpoint holds has a part in it, for which "
    return said + "vision3d-engine verify-resume looks"


def _contents(found: Findings) -> str:
    samples = f"the contents of a sample ({shortened(found.new_samples)} are read here for the first time), or "
    but = f" but {_named(found.rows.command)}" if found.rows.command else ""
    said = f"nothing that is recorded differs{but}: " + (samples if found.new_samples and found.before else "")
    first = "initial weights, " if not found.before else ""
    return f"{said}{first}code that is not committed, or something that no seed reaches (verify-resume looks for it)"


_RULES: Sequence[Callable[[Findings], str]] = (
    *(_validation, _order, _rate, _chance, _share, _data, _settings, _arguments, _kernels, _code, _resume, _contents),
)


def _training(found: Findings) -> list[Row]:
    return [row for row in found.rows.data if row.name.startswith("training") and "num_workers" not in row.name]


def _same(found: Findings) -> str:
    """Say what does not explain it."""
    known = {"same batch": found.is_same_batch, "same rate": found.rates.steps and found.rate is None}
    same = [what for what, holds in known.items() if holds]
    return f"{listed(same)}; " if same else ""


def _named(rows: Sequence[Row]) -> str:
    return shortened(rows, _MOST_NAMED) if rows else ""
