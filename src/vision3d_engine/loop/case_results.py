"""The numbers and files of the cases of a test, kept where a killed test finds them again."""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from vision3d_engine.checkpoint.files import plain_state
from vision3d_engine.core.errors import FolderError, ResultError, listed
from vision3d_engine.core.files import atomic_write, make_folder
from vision3d_engine.distributed.world import World
from vision3d_engine.loop.case_block import CaseBlock
from vision3d_engine.metrics.running_means import SKIPPED
from vision3d_engine.results.folder import ResultsFolder
from vision3d_engine.results.journal import Journal, Journals, Line, files_in
from vision3d_engine.results.plain_records import read, written
from vision3d_engine.results.sample_writer import SampleFiles
from vision3d_engine.results.statistics import Statistics, worst_cases
from vision3d_engine.results.table import CaseTable, refuse_taken, write_summary, write_table
from vision3d_engine.results.writer import OrderedWriter, as_folder_error


class CaseResults:
    """Takes in the cases of a test, batch by batch; numbers on a device are read in blocks, one copy for each.

    In a `TestPass` it has the place of `RunningMeans`. All processes make it, in the same attempt.

    Args:
        folder: where results lie.
        world: the processes.
        attempt: number of the attempt.
        total: how many batches all processes walk together; None where it is not known.
        about: what ``results.json`` says of the test beside its numbers.

    Attributes:
        former: how many batches earlier attempts of all processes have done.
        former_records: what `keep_records` was given in those of this process, by their numbers, counted from 0.
        batch: number of the batch at hand among those of all processes, from 0.
        counted: how many batches and cases were left out, once `means` has been called.
        cases: how many cases there are, likewise.
        statistics: what they say together, likewise on the main process.
    """

    def __init__(
        self, folder: ResultsFolder, world: World, attempt: int, total: int | None, about: Mapping[str, Any]
    ) -> None:
        self._folder, self._world, self._total, self._about = folder, world, total, about
        journals = Journals(folder.progress, before=attempt)
        done, records = journals.done(), {batch: read(kept) for batch, kept in journals.records().items()}
        self._done, self.former_records, self.former = self._own(done), self._own(records), len(done)
        self._journal = Journal(make_folder(folder.progress), attempt, world.rank)  # it may share none with others
        self._metrics: Any = None
        self._writer = OrderedWriter(folder.path)
        self._block = CaseBlock()
        self._files = SampleFiles(folder, self._writer)
        self._line: Line = {}
        self._indices: list[int] | None = None
        self._case: dict[str, Any] | None = None
        self._closed: list[dict[str, Any]] = []
        self._passed = self._taken = 0
        self.batch = 0
        self.counted: dict[str, int] = {}
        self.cases = 0
        self.statistics: Statistics = {}

    def _own(self, of_batches: Mapping[int, Any]) -> dict[int, Any]:
        """Return what there is of this process's batches, counted by themselves, given it by their numbers of all."""
        rank, size = self._world.rank, self._world.size
        return {batch // size: found for batch, found in sorted(of_batches.items()) if batch % size == rank}

    @property
    def done_here(self) -> set[int]:
        """The batches of this process, counted from 0, that earlier attempts have done."""
        return set(self._done)

    @property
    def done_cases(self) -> int:
        """How many cases this process has done, in all attempts."""
        return sum(self._done.values()) + self._taken

    @property
    def of_process(self) -> str:
        """Says, where there are several, that numbers are of one process."""
        return " of this process" if self._world.size > 1 else ""

    def follow(self, metrics: Any) -> None:
        """Keep the states of metrics, ``state_dict()``, with each block, as one record with what they cover.

        Those of earlier attempts are handed to ``add_state(state)`` of the main process by `means`.

        Raises:
            ResultError: for metrics without states, when earlier attempts have counted batches.
        """
        if self.former and metrics.unsaved:
            raise ResultError(_UNSAVED.format(self._folder.path, listed(metrics.unsaved)))
        self._metrics = metrics

    # ------------------------------------------------------------------------------------------- batches and cases

    def open_batch(self, number: int, indices: list[int] | None) -> int:
        """Begin a batch, given its number on this process, from 1, and the samples in it, where they are known.

        Returns:
            How many cases lie in batches before it that earlier attempts have done, and in none that was asked for.
        """
        self.batch = (number - 1) * self._world.size + self._world.rank
        self._line = {"batch": self.batch, "opened": 0, "skipped": 0, "files": [], "cases": [], "records": []}
        self._indices, self._closed = indices, []
        before = range(self._passed, number - 1)
        self._passed = number
        return sum(self._done.get(each, 0) for each in before)

    def open_case(self, place: int, count: int, name: Callable[[], Any]) -> None:
        """Begin a case, given its place among the cases of its batch, their count, and what returns its name."""
        self._line["opened"] += 1
        known = self._indices if self._indices is not None and len(self._indices) == count else None
        index = None if known is None else int(known[place])
        own = index if index is not None else self.batch if count == 1 else f"{self.batch}-{place}"
        chosen = name()
        text = str(own if chosen is None else chosen)  # that of a file may hold bytes that are no text
        self._case = {"name": text.encode(errors="backslashreplace").decode(), "index": index}

    def close_case(self) -> None:
        """End a case whose numbers come with the next `update`; one that is left out is not ended."""
        if self._case is not None:
            self._closed.append(self._case)
        self._case = None

    def save(self, kind: str, values: Any, suffix: str) -> None:
        """Write a file of the case at hand, by a thread; see `BaseTester.save_result`."""
        if self._case is None:
            message = f"save_result('{kind}') is called outside of a case: call it in eval_step or after_test_step"
            raise ResultError(message)
        self._line["files"].append(self._files.save(kind, self._case["name"], values, suffix))

    def keep_records(self, records: Iterable[Any]) -> None:
        """Keep records of the batch at hand for an attempt that goes on with this one."""
        self._line["records"].extend(map(written, records))

    def count(self, key: str) -> None:
        """Count a batch or a case that is left out."""
        self._line["skipped"] += 1
        self._case = None

    def update(self, results: Mapping[str, Any], weights: Any) -> None:
        """Take in the numbers of the next case that was closed, and what they weigh."""
        refuse_taken(results)
        case = self._closed.pop(0)
        case["values"] = {key: self._block.take(key, value) for key, value in results.items()}
        by_key = isinstance(weights, Mapping)
        case["weights"] = {key: self._block.take(key, weights[key]) for key in weights} if by_key else weights
        if not by_key:
            case["weights"] = self._block.take("weight", weights)
        self._line["cases"].append(case)
        self._taken += 1

    def close_batch(self) -> None:
        """End a batch; it counts as done when its block has been written."""
        self._block.lines.append(self._line)
        if self._block.is_full:
            self.keep()

    def keep(self) -> None:
        """Keep the batches that have ended, whose numbers may still wait on the device; a thread writes them."""
        if lines := self._block.read():
            self._writer.put(partial(self._journal.add, lines, self._state()))

    def _state(self) -> bytes | None:
        """Return the states of the metrics now; None where there is no metric."""
        has_metrics = self._metrics is not None and self._metrics.names
        return to_bytes(self._metrics.state_dict()) if has_metrics else None  # pyright: ignore[reportOptionalMemberAccess]

    # ------------------------------------------------------------------------------------------- the end

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write what was handed in on every way out of a block."""
        try:
            yield
        finally:
            self._writer.close()
            self._journal.close()

    def means(self) -> dict[str, float]:
        """Write the table of all cases of all attempts, and return the means; to be called by all processes.

        The sums are exact, so neither the number of processes nor that of attempts changes a digit.

        Raises:
            FolderError: when results cannot be written, or those of other processes are not there.
            ResultError: when a file was written for two samples.
        """
        self.keep()
        self._writer.flush()
        self._world.gather(None)  # a process that still writes puts other files in place of those it has
        self._bring_journals()
        self._add_states()
        found = self._world.gather(self._merge() if self._world.is_main else None)[0]
        self.cases, skipped, means = found
        self.counted = {SKIPPED: skipped} if skipped else {}
        return means

    def _bring_journals(self) -> None:
        """Let the main process have all journals, also where it shares no folder with the others."""
        self._world.gather(None)  # until then others may write, and remove the states that newer ones replace
        own = files_in(self._folder.progress)
        there = self._world.gather([path.name for path in own])[0]
        brought = self._world.gather({path.name: path.read_bytes() for path in own if path.name not in there})
        for name, text in [item for each in brought for item in each.items()] if self._world.is_main else ():
            with as_folder_error(self._folder.path), atomic_write(self._folder.progress / name) as file:
                file.write(text)

    def _add_states(self) -> None:
        """Let the metrics of the main process have what earlier attempts of all processes have counted."""
        if self._metrics is None or not self._world.is_main:
            return
        for path in Journals(self._folder.progress, before=self._journal.attempt).states():
            self._metrics.add_state(torch.load(path, map_location="cpu", weights_only=True))

    def _merge(self) -> tuple[int, int, dict[str, float]]:
        if (path := Journals(self._folder.progress).file_of_two()) is not None:
            raise ResultError(_TWO.format(self._folder.path / path))
        table = CaseTable(self._folder.progress)
        if self._total is not None and table.batches != self._total:
            raise FolderError(_INCOMPLETE.format(self._folder.path, table.batches, self._total))
        with as_folder_error(self._folder.output):
            statistics = write_table(self._folder.output, table, self._folder.test)
        self.statistics = statistics.table()
        return len(table), table.skipped, statistics.means()

    def finish(self, numbers: Mapping[str, float]) -> None:
        """Write the summary, given all numbers of it; the test has ended then."""
        if self._world.is_main:
            found = {"cases": self.cases, "summary": dict(numbers), "statistics": self.statistics}
            with as_folder_error(self._folder.output):
                write_summary(self._folder.output, {**self._about, **found}, self._folder.test)
                self._folder.finish()

    def worst(self, by: tuple[str, str], count: int) -> list[tuple[str, float]]:
        """Return names and numbers of the worst cases; on the main process, once `means` has been called."""
        return worst_cases(CaseTable(self._folder.progress), by, count)


def to_bytes(state: Any) -> bytes:
    """Return a state as a file has it, now, since it goes on counting.

    Raises:
        CheckpointError: for what would not load as data only.
    """
    buffer = io.BytesIO()
    torch.save(plain_state(state), buffer)
    return buffer.getvalue()


_UNSAVED = (
    "the test in '{}' cannot be gone on with: what these metrics have counted of batches that are done is lost, since "
    "they have no state_dict and load_state_dict: {}. Give them both, or start anew with --overwrite"
)
_TWO = (
    "'{}' was written for two samples, and holds only one of them: give each sample a name of its own in "
    "data_dict['name'], or override sample_name, and start anew with --overwrite"
)
_INCOMPLETE = (
    "'{}' has the results of {} batches, and the data set has {}: either the loader has ended early, or processes on "
    "other machines have gone on with what only they have. Start anew with --overwrite, and exp.output_dir in a "
    "folder that all machines share"
)
