"""What a replay says of its step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vision3d_engine.core.columns import aligned
from vision3d_engine.core.compare import same_bits
from vision3d_engine.core.tree import leaves
from vision3d_engine.data.sample_seeds import SampleIndex
from vision3d_engine.replay.causes import cause_in_weights
from vision3d_engine.replay.inside import Figures, Inside
from vision3d_engine.replay.origin import Origin
from vision3d_engine.replay.starting import Start
from vision3d_engine.replay.values import rows_not_finite

SAME, CLOSE, DIFFERS, UNRECORDED, FAILED = "same", "close", "differs", "unrecorded", "failed"
_COLUMNS = ("shape", "mean", "std", "min", "max", "non-finite")


@dataclass(frozen=True)
class Samples:
    """The samples of a batch.

    Attributes:
        lines: of each its index, name and the line that loads it, or the name alone; empty where none is known.
        seeded: which they are, with what each was seeded by; empty where that is not known.
    """

    lines: list[str]
    seeded: list[SampleIndex]

    @property
    def indices(self) -> list[Any]:
        """Which they are."""
        return [sample.index for sample in self.seeded]

    @classmethod
    def of(cls, seeded: list[SampleIndex], data_dict: Any) -> "Samples":
        """Return those of a batch.

        Args:
            seeded: which they are; none where that is not known.
            data_dict: the batch.
        """
        names = _names_in(data_dict, len(seeded)) if seeded else []
        lines = [
            f"{sample.index}{f' ({name})' if name else ''}: {_line_of(sample)}"
            for sample, name in zip(seeded, names, strict=True)
        ]
        return cls(lines or list(map(str, _names_of(data_dict))), seeded)

    def told(self, data_dict: Any, count: int) -> list[dict[str, str]]:
        """Return of each of so many samples its ``name`` and the ``line`` that loads it, empty where it is not known.

        Args:
            data_dict: the batch.
            count: how many samples it holds.
        """
        names = _names_in(data_dict, count)
        places = self.indices if len(self.seeded) == count else [f"{place + 1} of the batch" for place in range(count)]
        lines = map(_line_of, self.seeded) if len(self.seeded) == count else [""] * count
        return [
            {"name": f"sample {place}{f' ({name})' if name else ''}", "line": line}
            for place, name, line in zip(places, names, lines, strict=True)
        ]

    def named_in(self, data_dict: Any, path: str) -> str:
        """Say which sample it is of, where an entry of the batch has one row a sample."""
        rows = rows_not_finite(dict(leaves(data_dict)).get(path), len(self.indices))
        return f", sample {self.indices[rows[0]]}" if rows else ""


def _names_in(data_dict: Any, count: int) -> list[str]:
    """Return the names of so many samples that a batch holds, empty ones where it holds none."""
    names = _names_of(data_dict)
    return names if len(names) == count else [""] * count


def _names_of(data_dict: Any) -> list[str]:
    """Return the names of the samples of a batch; none where it holds none."""
    names = data_dict.get("name", data_dict.get("names")) if isinstance(data_dict, Mapping) else None
    return list(names) if isinstance(names, list | tuple) else []


def _line_of(sample: SampleIndex) -> str:
    """Return the line that loads a sample with the random numbers that it had."""
    given = f"{sample.index!r}, epoch={sample.epoch}, seed={sample.seed}"
    return f"vision3d_engine.replay_sample(dataset, {given})"


@dataclass
class Report:
    """What is known of a step that was replayed.

    Attributes:
        step: training batches since the start of the run.
        epoch: its epoch.
        iteration: its iteration there.
        start: where the replay has started.
        samples: those of its batch.
        origins: by process, where its first number comes from that is not finite.
        growth: which parameters have grown out of all proportion before it; empty if none has.
        values: what it has returned.
        recorded: what the run has recorded of it; None if nothing.
        inside: what was seen inside.
        title: which part of the step it is; empty for all that the main process had.
        tolerance: by which share numbers may differ from those of the run; 0 where their bits are the same.
        processes: how many have made the step.
        lines: of each process that was asked, the lines of its samples.
    """

    step: int
    epoch: int
    iteration: int
    start: Start
    samples: Samples
    origins: Mapping[int, Origin | None] = field(default_factory=dict)
    growth: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    recorded: Mapping[str, float] | None = None
    inside: Inside | None = None
    title: str = ""
    tolerance: float = 0
    processes: int = 1
    lines: Mapping[int, list[str]] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """Whether it has returned what the run had: its bits, or to the tolerance."""
        if not self.values:
            return FAILED
        both = self.values.keys() & (self.recorded or {}).keys()  # the run has recorded norms of gradients too
        if not both:
            return UNRECORDED
        as_expected = CLOSE if self.tolerance else SAME
        return as_expected if all(map(self._is_as_recorded, both)) else DIFFERS

    def _is_as_recorded(self, key: str) -> bool:
        value, recorded = self.values[key], (self.recorded or {}).get(key)
        if recorded is None or same_bits(value, recorded):
            return True
        return bool(self.tolerance) and math.isclose(value, recorded, rel_tol=self.tolerance)

    def text(self) -> str:
        """Return it as text."""
        title = f", {self.title}" if self.title else ""
        head = f"step {self.step}{title}: epoch {self.epoch}, iteration {self.iteration}; replayed from {self.start}"
        verdict = _VERDICTS[self.verdict].format(self.tolerance)
        parts = [
            head,
            f"run folder: {self.start.run}",
            *self._samples_text(),
            *map(self._value_text, self.values),
            verdict,
        ]
        return "\n".join([*parts, *self._origins_text(), *self._inside_text()])

    def _origins_text(self) -> list[str]:
        of = {rank: f"process {rank}: " if len(self.origins) > 1 else "" for rank in self.origins}
        found = [f"first not finite: {of[rank]}{origin}" for rank, origin in self.origins.items() if origin]
        return [*found, self.growth] if found and self.growth else found

    def _samples_text(self) -> list[str]:
        """List the samples of the processes that are to blame; where none is, of the main one."""
        shown = [rank for rank, origin in self.origins.items() if origin] or [0]
        title = "samples of process {}:" if self.processes > 1 else "samples:"
        return [line for rank in shown for line in samples_text(title.format(rank), self.lines.get(rank, []))]

    def _value_text(self, key: str) -> str:
        recorded = (self.recorded or {}).get(key)
        is_same = recorded is None or same_bits(self.values[key], recorded)
        return f"{key} {self.values[key]!r}" + ("" if is_same else f", but the run had {recorded!r}")

    def _inside_text(self) -> list[str]:
        inside = self.inside
        if inside is None:
            return []
        parts = {
            "activations": inside.activations,
            "gradients of activations": inside.gradients,
            "gradients of parameters": inside.parameters,
        }
        cause = cause_in_weights(self.step)
        is_broken = any(origin is not None and origin.cause == cause for origin in self.origins.values())
        shown = {title: _of_use(figures) if is_broken else figures for title, figures in parts.items()}
        left_out = sum(map(len, parts.values())) - sum(map(len, shown.values()))
        tables = [line for title, figures in shown.items() if figures for line in _table(title, figures)]
        return [*tables, "", f"left out: {left_out} rows without a finite number"] if left_out else tables


def _of_use(figures: Mapping[str, Figures]) -> dict[str, Figures]:
    """Return those that say something behind weights that were broken before the step."""
    return {name: each for name, each in figures.items() if not each.is_broken}


_VERDICTS = {
    SAME: "the same bits as in the run",
    CLOSE: "equal to the run to {:g} of each number, not to the bit: one process has made the steps of several, whose "
    "sums have another order",
    DIFFERS: "not the bits of the run",
    UNRECORDED: "the run has recorded nothing of this step to compare with",
    FAILED: "the step has failed",
}


def samples_text(title: str, lines: list[str]) -> list[str]:
    """Return the lines of samples under a title; nothing where there are none."""
    return [title, *(f"  {line}" for line in lines)] if lines else []


def _table(title: str, figures: Mapping[str, Figures]) -> list[str]:
    """Return a table with a row for each tensor."""
    rows = [(title, *_COLUMNS), *((name, *_cells(each)) for name, each in figures.items())]
    return ["", *aligned(rows)]


def _cells(each: Figures) -> tuple[str, ...]:
    if each.nonfinite is None:
        return (each.shape, *[""] * 4, "not looked at")
    numbers = (f"{number:.4g}" for number in (each.mean, each.std, each.least, each.most))
    return (each.shape, *numbers, str(each.nonfinite))
