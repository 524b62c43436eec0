"""The tester that both kinds of testing share."""

import abc
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vision3d_engine.checkpoint.files import available
from vision3d_engine.checkpoint.loading import load_weights
from vision3d_engine.core.errors import CheckpointError, RegistrationError, ResultError, SkipBatch, listed
from vision3d_engine.core.tree import describe
from vision3d_engine.distributed.parallel.base import Parallel
from vision3d_engine.logs.closing_block import closing_block, first_of
from vision3d_engine.logs.log_line import clock_text, get_format_strings, get_log_string
from vision3d_engine.loop.case_results import CaseResults
from vision3d_engine.loop.eval_pass import TestPass
from vision3d_engine.loop.hooks import TEST_HOOKS
from vision3d_engine.metrics.running_means import read_numbers
from vision3d_engine.results.names import FOLDER, named
from vision3d_engine.results.statistics import statistics_text, what_is_wrong_with
from vision3d_engine.run.data_checks import check_alike
from vision3d_engine.run.engine import Engine
from vision3d_engine.run.session import Session
from vision3d_engine.run.test_results import opened_results
from vision3d_engine.run.test_stopping import StopsBehindBatches


class BaseTester(Engine, abc.ABC):
    """Tests a model: subclass one of the testers, register model and loader, write the steps, call `run`.

    Args:
        cfg: settings of any kind; only ``exp.*`` and ``trainer.*`` are read.
        checkpoint: the weights to test: an absolute path, one from where the command runs, or a name in the checkpoint
            folder. ``--checkpoint`` and ``--test_epoch`` on the command line win over it.

    Raises:
        ConfigError: for wrong settings or flags, all at once.
        FolderError: when the run folder cannot be written.

    Attributes:
        worst_by: a number's name, and whether the ``"largest"`` or the ``"smallest"`` are the worst, as in
            ``("RRE", "largest")``: the worst cases are named in the log. None: they are not.
        worst_count: how many.
        test_name: what the test is called, for several in one run folder: with ``"lomatch"`` it leaves
            ``results-lomatch.csv`` and so on. ``--test_name`` wins over it.
    """

    worst_by: tuple[str, str] | None = None
    worst_count: int = 5
    test_name: str = ""

    def __init__(self, cfg: Any = None, checkpoint: str | None = None) -> None:
        session = Session(cfg, "test", {"checkpoint": checkpoint})
        super().__init__(session, cfg, TEST_HOOKS, BaseTester, Parallel(session.world))
        self.test_loader: Any = None
        self._loaded_from: Any = None
        self._results: CaseResults | None = None

    @property
    def results_dir(self) -> Path:
        """The folder of what `save_result` writes; tables lie beside it, such as ``f"{results_dir}.csv"``."""
        return self._session.folders.output / named(FOLDER, self._name)

    @property
    def _name(self) -> str:
        return self._context.settings.test_name or self.test_name

    def register_loader(self, test_loader: Iterable[Any]) -> None:
        """Register the loader; it yields dicts."""
        if not hasattr(test_loader, "__iter__"):
            message = f"register_loader got {describe(test_loader)}; it must be an iterable of dicts"
            raise RegistrationError(message)
        self.test_loader = test_loader

    def metric_weight(self, data_dict: Any, output_dict: Any, result_dict: Any) -> Any:
        """Return what the results of a step weigh in means: one number for all, or a dict of numbers for single keys.

        A number may be a tensor of one element, which is not read before a log line. A result without weight may be NaN
        (a mean over no correspondences). By default, and for keys that a dict leaves out, a case weighs 1, and a
        whole batch of a SingleTester as many samples as were drawn for it.
        """
        return None

    def sample_name(self, iteration: int, data_dict: Any) -> str | None:
        """Return the name of a case, which its row and its files have; None for its index in the data set.

        By default what the data has under ``"name"``: a text, or a list of one. Where the engine does not know the
        index, as with a sampler of a script's own, the number of the batch stands for it.
        """
        name = data_dict.get("name") if isinstance(data_dict, Mapping) else None
        if isinstance(name, list | tuple) and len(name) == 1:
            name = name[0]
        return name if isinstance(name, str) else None

    def save_result(self, name: str, values: Mapping[str, Any], format: str = "npz") -> None:  # noqa: A002  as in PIL
        """Write ``results/NAME/SAMPLE.npz`` for the case at hand, whole or not at all, by a thread.

        To be called in ``eval_step`` or ``after_test_step``. Tensors of a device are copied to the host, which waits.

        Args:
            name: the kind of result, such as ``"prediction"``.
            values: tensors, arrays, numbers and text by name, also in nested dicts.
            format: ``"npz"``, or ``"ply"`` for a cloud: ``points`` ``(N, 3)``, and what else has N rows.

        Raises:
            ResultError: for a sample whose name another one has, and for values that the file cannot hold.
            FolderError: when an earlier file could not be written.
        """
        if self._results is None:
            raise ResultError(f"save_result('{name}') is called outside of a test: call it in eval_step")
        self._results.save(str(name), values, format)

    def add_records(self, records: Iterable[Any]) -> None:
        """Keep one record for each sample of the batch at hand, for `gather_records`.

        Args:
            records: in the order of the samples. A test with records of numbers, texts, None, and lists, tuples and
                dicts of these can be gone on with; others can be anything that can be pickled.
        """
        records = list(records)
        super().add_records(records)
        if self._results is not None:
            self._results.keep_records(records)

    def load(self, filename: str, key: str | None = None) -> None:
        """Load the weights of a checkpoint, or of any code's file, strictly.

        Args:
            filename: a path, or a name in the checkpoint folder.
            key: where the weights are in a file that holds several nests of tensors.

        Raises:
            CheckpointError: when there is none, it is damaged or unsafe, or belongs to another model.
        """
        folder = self._session.folders.source_of(filename)
        path, metadata, _ = load_weights(self.model, filename, folder, key=key)
        self._loaded_from = path
        self.log(f"loaded {path}" + "".join(f", {key}: {value}" for key, value in metadata.items()))

    def _checkpoint_name(self) -> str:
        """Return the checkpoint to test; a flag that was given wins over the constructor and the config."""
        trainer, folders = self._context.settings, self._session.folders
        given = self._session.arguments.engine_values()
        if trainer.test_epoch is not None and "checkpoint" not in given:
            name = f"epoch-{trainer.test_epoch}.pth"
            return str(folders.source_of(name) / name)
        if trainer.checkpoint is None:
            folder = folders.source_of("")
            message = (
                f"no checkpoint is given. Use --checkpoint PATH or --test_epoch N; in '{folder}' there are: "
                f"{listed(available(folder))}"
            )
            raise CheckpointError(message)
        return trainer.checkpoint

    # ------------------------------------------------------------------------------------------- hooks and steps

    def before_test_epoch(self) -> None:
        """Act before the test."""

    def before_test_step(self, iteration: int, data_dict: Any) -> None:
        """Act before a test step; the batch is on the device."""

    @abc.abstractmethod
    def test_step(self, iteration: int, data_dict: Any) -> Any:
        """Return the model's output dict for a batch; must be implemented.

        Runs without gradients unless it turns them on.
        """

    @abc.abstractmethod
    def eval_step(self, iteration: int, data_dict: Any, output_dict: Any) -> dict[str, Any]:
        """Return the results of a case, each one number; must be implemented."""

    def after_test_step(self, iteration: int, data_dict: Any, output_dict: Any, result_dict: Any) -> None:
        """Act after a test step."""

    def after_test_epoch(self, summary_dict: dict[str, Any]) -> None:
        """Act after the test; ``summary_dict`` holds the means of the results. Numbers added to it are logged."""

    def get_log_string(self, iteration: int, data_dict: Any, output_dict: Any, result_dict: Any) -> str:
        """Return what a log line says of a case; ``result_dict`` holds numbers of the host."""
        return get_log_string(result_dict)

    # ------------------------------------------------------------------------------------------- the run

    def run(self) -> None:
        """Load the checkpoint and test.

        Raises:
            EngineError: for a missing part or checkpoint, an empty loader, a wrong result dict, ...
        """
        with self._session.short_tracebacks():
            self._require(test_loader=self.test_loader, model=self.model)
            try:
                self._test()
            finally:
                self._let_go()

    def _test(self) -> None:
        with self._session.running(self._where), self._session.watching(self._where):
            self._session.check_arguments()
            # The main one may still have written the file for a trainer before: this waits for it.
            check_alike(self._context.world, metrics=self._context.metrics.kinds())
            self.load(self._checkpoint_name())
            self.model.eval()
            self._hooks.bind()
            self.test_epoch()
            self._tell_end()

    def _where(self) -> str:
        """Say where in the run this process is."""
        return "the preparations" if self._pass is None else f"test iteration {self.iteration}"

    def test_epoch(self) -> None:
        """Test once over the loader."""
        self._records.clear()
        loader = self._loaders.get("test", self.test_loader)
        metrics = {f"metrics.{name}": type(each).__name__ for name, each in self._context.metrics.registered.items()}
        script = {"tester": type(self).__name__, **metrics}
        with opened_results(self._session, script, self._name, self._loaded_from, loader, self.worst_by) as results:
            self._results = results
            for number, records in results.former_records.items():
                self._records.add(records, number + 1)
            stops = StopsBehindBatches(results, self.log)
            after_iteration = stops.after(self._after_iteration)
            self._pass = TestPass(self, self._context, loader, after_iteration, self._cases, results)
            with stops.listening():
                self._pass.test()

    def _tell_end(self) -> None:
        """Say once more what came out, over how many cases and of which weights; a script's own loop is its own."""
        ended, results = self._pass, self._results
        if ended is None or results is None:
            return
        self._tell_cases(results)
        numbers = (text.partition(": ") for text in get_format_strings(ended.metrics.in_line(ended.numbers)))
        lines = first_of({name: number for name, _, number in numbers})
        lines |= {"checkpoint": str(self._loaded_from)} if self._loaded_from is not None else {}
        lines |= {"test": self._name} if self._name else {}
        lines |= {"run folder": str(self._session.folders.output), "time": clock_text(ended.runner.clock.elapsed_s())}
        self.log(closing_block(f"test ended: {results.cases:,} cases", lines), level="SUCCESS")

    def _tell_cases(self, results: CaseResults) -> None:
        """Say how the numbers of the cases are spread, and which cases are the worst."""
        if not self._context.world.is_main or not results.statistics:
            return
        self.log(f"cases:\n{statistics_text(results.statistics)}")
        if self.worst_by is not None:
            self.log(*_told_worst(results, self.worst_by, self.worst_count))

    @abc.abstractmethod
    def _cases(self, iteration: int, data_dict: Any) -> Iterable[tuple[Any, Any]]:
        """Run the test steps of a batch; return data and output of each case."""

    def _tested(self, iteration: int, data_dict: Any) -> Any:
        """Return what `test_step` makes of a batch, computed in the numbers of ``trainer.precision``."""
        with self._context.precision.autocast():
            output_dict = self.test_step(iteration, data_dict)
        if output_dict is None:
            raise SkipBatch("test_step returned None")
        return output_dict

    def _after_iteration(self, iteration: int) -> None:
        """Write the numbers of the latest case when a log line is due; batches may have held none yet."""
        number, data_dict, output_dict, result_dict = self._pass.last_case
        if iteration % self.log_steps or number == 0:
            return
        message = self.get_log_string(number, data_dict, output_dict, read_numbers(result_dict))
        runner = self._pass.runner
        runner.bar.say(message)
        times = get_log_string({}, time_dict=runner.clock.interval().times())
        of = f"/{runner.max_iteration}" if runner.max_iteration else ""
        self.log(f"iter: {iteration}{of}, {message}, {times}")


def _told_worst(results: CaseResults, by: tuple[str, str], count: int) -> tuple[str, str]:
    """Return what is said of the worst cases, and its level."""
    if wrong := what_is_wrong_with(by, results.statistics):
        return wrong, "WARNING"
    lines = first_of({name: f"{by[0]}: {value:.6g}" for name, value in results.worst(by, count)})
    return closing_block(f"worst cases, {by[1]} {by[0]} first:", lines), "INFO"
