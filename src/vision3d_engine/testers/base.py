"""The tester that both kinds of testing share."""

import abc
from collections.abc import Iterable
from typing import Any

import torch

from vision3d_engine.checkpoint.files import available
from vision3d_engine.checkpoint.parts import load_weights
from vision3d_engine.core.errors import CheckpointError, RegistrationError, listed
from vision3d_engine.core.seeding import derived_seed
from vision3d_engine.core.tree import describe
from vision3d_engine.data.prefetcher import Prefetcher
from vision3d_engine.data.source import Source
from vision3d_engine.logs.log_line import get_log_string
from vision3d_engine.loop.engine import Engine
from vision3d_engine.loop.hooks import TEST_MOMENTS
from vision3d_engine.loop.results import ResultChecker, as_numbers
from vision3d_engine.loop.runner import Runner
from vision3d_engine.loop.session import Session
from vision3d_engine.metrics.moments import Moments, read_numbers


class BaseTester(Engine, abc.ABC):
    """Tests a model: subclass `SingleTester` or `BatchTester`, register model and loader, write the steps, call `run`.

    Args:
        cfg: settings of any kind; only ``exp.*`` and ``trainer.*`` are read.
        checkpoint: the weights to test: an absolute path, one from where the command runs, or a name in the checkpoint
            folder. ``--checkpoint`` and ``--test_epoch`` on the command line win over it.

    Raises:
        ConfigError: for wrong settings or flags, all at once.
        FolderError: when the run folder cannot be written.
    """

    def __init__(self, cfg: Any = None, checkpoint: str | None = None) -> None:
        super().__init__(Session(cfg, "test", {"checkpoint": checkpoint}), cfg, TEST_MOMENTS, BaseTester)
        self._checker = ResultChecker("eval_step")
        self.iteration = 0
        self.test_loader: Any = None

    def register_loader(self, test_loader: Iterable[Any]) -> None:
        """Register the loader; it yields dicts."""
        if not hasattr(test_loader, "__iter__"):
            message = f"register_loader got {describe(test_loader)}; it must be an iterable of dicts"
            raise RegistrationError(message)
        self.test_loader = test_loader

    def load(self, filename: str) -> None:
        """Load the weights of a checkpoint, strictly.

        Raises:
            CheckpointError: when there is none, it is damaged or unsafe, or belongs to another model.
        """
        path, metadata, _ = load_weights(self.model, filename, self._session.folders.checkpoints)
        self.log(f"loaded {path}" + "".join(f", {key}: {value}" for key, value in metadata.items()))

    def _checkpoint_name(self) -> str:
        """Return the checkpoint to test; a flag that was given wins over the constructor and the config."""
        trainer = self._session.settings.trainer
        given = self._session.arguments.engine_values()
        if trainer.test_epoch is not None and "checkpoint" not in given:
            return str((self._session.folders.checkpoints / f"epoch-{trainer.test_epoch}.pth").absolute())
        if trainer.checkpoint is None:
            folder = self._session.folders.checkpoints
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
        self._require(test_loader=self.test_loader, model=self.model)
        with self._session.running(), self._session.watching(self._where):
            self._session.check_arguments()
            self.load(self._checkpoint_name())
            self.model.eval()
            self._events.bind()
            self.test_epoch()

    def _where(self) -> str:
        """Say where in the run this process is."""
        return "the preparations" if self._runner is None else f"test iteration {self.iteration}"

    def test_epoch(self) -> None:
        """Test once over the loader."""
        world = self._session.world
        self._records = {}
        self._events.fire("before_test_epoch")
        runner = self._runner = Runner(
            "test",
            self._test_iteration,
            self._after_test_iteration,
            prefetcher=Prefetcher(world.device),
            moments=Moments(self._add_up),
            progress_bar=world.is_main,
            may_be_empty=world.size > 1,
        )
        source = Source(self.test_loader)
        base = derived_seed(self._session.settings.exp.seed, "data", "test")
        runner.run(source.batches(base, epoch=1, rank=world.rank), source.length)
        summary_dict: dict[str, Any] = runner.moments.means()
        self._events.fire("after_test_epoch", summary_dict)
        times = runner.clock.means()
        self.log("[Test] " + get_log_string(as_numbers(summary_dict), time_dict=times), level="SUCCESS")

    def _test_iteration(self, iteration: int, data_dict: Any) -> list[dict[str, Any]]:
        self.iteration = iteration
        with torch.no_grad():
            self._events.fire("before_test_step", iteration, data_dict)
            output_dict = self.test_step(iteration, data_dict)
            results = list(self._evaluate(iteration, data_dict, output_dict))
        for result_dict in results:
            self._checker.check(result_dict)
        return results

    @abc.abstractmethod
    def _evaluate(self, iteration: int, data_dict: Any, output_dict: Any) -> Iterable[dict[str, Any]]:
        """Evaluate the cases of a batch and yield their results."""

    def _evaluate_case(self, number: int, data_dict: Any, output_dict: Any) -> dict[str, Any]:
        """Evaluate one case; the last one is kept for the log line."""
        result_dict = self.eval_step(number, data_dict, output_dict)
        self._checker.check(result_dict)
        self._events.fire("after_test_step", number, data_dict, output_dict, result_dict)
        self._last_case = (number, data_dict, output_dict, result_dict)
        return result_dict

    def _after_test_iteration(self, iteration: int) -> None:
        """Write the numbers of the latest case when a log line is due."""
        if iteration % self.log_steps:
            return
        number, data_dict, output_dict, result_dict = self._last_case
        message = self.get_log_string(number, data_dict, output_dict, read_numbers(result_dict))
        total = self._runner.max_iteration
        times = get_log_string({}, time_dict=self._runner.clock.window().times())
        self.log(f"iter: {iteration}{f'/{total}' if total else ''}, {message}, {times}")
