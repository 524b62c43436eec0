"""Values that differ between what two runs have recorded of themselves, by dotted names."""

from collections.abc import Collection
from typing import Any, NamedTuple

from vision3d_engine.core.cli import script_arguments
from vision3d_engine.diff.recorded import Recorded, flat
from vision3d_engine.report.run_data import section

_WIDEST, _REST = 36, "..."


class Row(NamedTuple):
    """A value that differs.

    Attributes:
        name: its dotted name.
        a: what it is in the first run; None where it is missing.
        b: likewise in the second.
    """

    name: str
    a: Any
    b: Any

    def __str__(self) -> str:
        return f"{self.name} is {shown_value(self.a)} and {shown_value(self.b)}"


class Rows(NamedTuple):
    """What differs, by where it is recorded.

    Attributes:
        settings: of the config and of the engine, which may change numbers.
        environment: versions, machine, processes, code.
        data: of the loaders.
        command: of the words behind the script's name, but for settings and flags of the engine.
        idle: what changes no number: where and when the runs ran, how often they log and save.
    """

    settings: list[Row]
    environment: list[Row]
    data: list[Row]
    command: list[Row]
    idle: list[Row]

    def named(self, *names: str) -> list[Row]:
        """Return those of these names, or in sections of these names."""
        return [row for rows in self[:4] for row in rows if any(_is_in(row.name, name) for name in names)]


def rows_of(a: Recorded, b: Recorded) -> Rows:
    """Compare settings, environment and data; what one run has not recorded at all is left out."""
    runs = (a.run, b.run)
    settings, idle = _parted(_differing([run.settings for run in runs]), _IDLE_SETTINGS)
    elsewhere = [{name: value for name, value in run.environment.items() if name != "data"} for run in runs]
    environment, moment = _parted(_differing(elsewhere), _IDLE_ENVIRONMENT)
    data = _differing([section(run.environment, "data") for run in runs])
    told = {f"--{row.name}" for row in settings + idle}
    command = [row for row in _commands([run.environment for run in runs]) if row.name not in told]
    return Rows(settings, environment, data, command, idle + moment)


def _commands(environments: list[dict[str, Any]]) -> list[Row]:
    """Return the arguments of the scripts that differ, as far as both commands are recorded."""
    commands = [str(environment["command"]) for environment in environments if "command" in environment]
    return _rows(*map(script_arguments, commands)) if len(commands) == len(environments) else []


def _differing(nests: list[dict[str, Any]]) -> list[Row]:
    if not all(nests):
        return []
    return _rows(*(dict(flat(nest)) for nest in nests))


def _rows(a: dict[str, Any], b: dict[str, Any]) -> list[Row]:
    rows = (Row(name, a.get(name), b.get(name)) for name in {**a, **b})
    return [row for row in rows if repr(row.a) != repr(row.b)]  # 1 is not True, but NaN is NaN


def _parted(rows: list[Row], idle: Collection[str]) -> tuple[list[Row], list[Row]]:
    """Return the rows that may change numbers, and those that do not."""
    return [row for row in rows if row.name not in idle], [row for row in rows if row.name in idle]


def _is_in(name: str, section_name: str) -> bool:
    return name == section_name or name.startswith(f"{section_name}.")


def shown_value(value: Any, widest: int | None = _WIDEST) -> str:
    """Return a value as text, of which no more than the beginning is shown."""
    text = "none" if value is None else str(value)
    return text if widest is None or len(text) <= widest else text[: widest - len(_REST)] + _REST


_IDLE_ENVIRONMENT = ("time", "command", "launch", "seed", "trainer.began_behind")
_IDLE_SETTINGS = (
    *(f"exp.{name}" for name in ("name", "output_dir", "checkpoint_dir", "log_dir", "event_dir")),
    *(f"trainer.{name}" for name in ("log_steps", "curve_axis", "write_files", "progress_bar", "save_every")),
    *(f"trainer.{name}" for name in ("save_latest_n_models", "save_best_n_models", "save_every_n_epochs")),
    *(f"trainer.{name}" for name in ("replay_every", "async_save", "save_on_exception", "max_time", "requeue")),
    *(f"trainer.{name}" for name in ("overwrite", "resume", "debug", "pdb", "replica_check", "test_name")),
    *(f"trainer.{name}" for name in ("collective_timeout_s", "hang_after", "on_hang", "heartbeat_s")),
)
