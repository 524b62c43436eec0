"""One pass over validation or test data: without gradients, every case counted once."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch

from vision3d_engine.core.errors import SkipBatch
from vision3d_engine.core.seeding import StepSeeds
from vision3d_engine.data.exact_length import at_most
from vision3d_engine.data.loader_sets import title_of
from vision3d_engine.data.prefetcher import Prefetcher
from vision3d_engine.data.resumable_loader import ResumableLoader
from vision3d_engine.logs.log_line import get_log_string
from vision3d_engine.loop.context import PassContext
from vision3d_engine.loop.metric_weights import weights_by
from vision3d_engine.loop.result_checks import ResultChecker, as_numbers
from vision3d_engine.loop.runner import Runner
from vision3d_engine.loop.skipping import SkippedBatches, refuse_none, with_skipped
from vision3d_engine.metrics.running_means import RunningMeans


class EvalPass:
    """Walks a loader once and averages what its steps return.

    Args:
        owner: the trainer or tester whose steps run.
        context: what all passes share.
        loader: the data.
        after_iteration: called after each batch with its number.
        name: of several sets, for messages.
    """

    phase = "val"
    step_name = "val_step"

    def __init__(
        self,
        owner: Any,
        context: PassContext,
        loader: ResumableLoader,
        after_iteration: Callable[[int], None],
        name: str | None = None,
    ) -> None:
        world = context.world
        self._owner, self._context, self._loader = owner, context, loader
        self._checks = ResultChecker(self.step_name)
        self._seeds: StepSeeds | None = None
        self._weighs_all_alike = context.hooks.is_default("metric_weight")
        loader.counts_samples = context.progress.counts_samples
        self.meters = RunningMeans(context.counters.sum_up)
        self._skipping = SkippedBatches(context, loader, self.meters, self.phase, name=name)
        title = self.phase if name is None else f"{self.phase} '{name}'"
        self.runner = Runner(
            title,
            self._iterate,
            after_iteration,
            prefetcher=Prefetcher(world.device, host_tensors=context.host_tensors),
            bar=context.progress_bar(title),
            may_be_empty=world.size > 1,
            loader=None if name is None else title_of("validation", name),
        )

    def validate(self, phase: str, epoch: int) -> dict[str, Any]:
        """Walk with randomness of its own, which a name of the phase seeds; return the means over all processes."""
        seeds = self._context.seed_pass(phase)
        self._seeds = seeds if self._loader.is_positioned else None  # else they are set before a batch is read
        return self.walk(self._context.data_seed(phase, *self._context.position()), epoch)

    def walk(self, seed: int, epoch: int) -> dict[str, Any]:
        """Walk the batches and return the means over all processes.

        Args:
            seed: seed of order and samples.
            epoch: number of the pass, for samplers and data sets.
        """
        self._loader.announce(epoch)
        limit = self._context.settings.limit_batches
        length = at_most(self._loader.length, limit)
        with self._context.parallel.local_forward(self._owner.model, length):
            self.runner.run(islice(self._loader.batches(seed, epoch), limit), length)
        return with_skipped(self.meters.means(), self.meters)

    def _iterate(self, iteration: int, data_dict: Any) -> None:
        self._context.progress.iteration = iteration
        if self._seeds is not None:
            self._seeds.seed(iteration)
        try:
            with torch.no_grad():
                results = list(self._results(iteration, data_dict))
        except SkipBatch as error:
            self._skipping.note(iteration, self.runner.place, error)
            return
        for result_dict, weights in results:
            self._checks.check(result_dict)
            self.meters.update(result_dict, weights)

    def _weights(self, samples: int, *dicts: Any) -> Any:
        """Return what the results of a step weigh: what the user says, or the number of samples."""
        return samples if self._weighs_all_alike else weights_by(self._owner.metric_weight, samples, *dicts)

    def _results(self, iteration: int, data_dict: Any) -> Iterable[tuple[dict[str, Any], Any]]:
        """One validation batch: the results after the last hook, and what they weigh."""
        refuse_none(data_dict)
        owner, hooks, epoch = self._owner, self._context.hooks, self._context.progress.epoch
        hooks.fire("before_val_step", epoch, iteration, data_dict)
        with self._context.precision.autocast():
            returned = owner.val_step(epoch, iteration, data_dict)
        output_dict, result_dict = self._checks.unpack(returned)
        hooks.fire("after_val_step", epoch, iteration, data_dict, output_dict, result_dict)
        return ((result_dict, self._weights(self.runner.place[2], data_dict, output_dict, result_dict)),)


def follow_main(context: PassContext, summary_dict: dict[str, Any], source: str) -> dict[str, float]:
    """Let the numbers of a summary be the main process's, to which a hook may have added some; return them."""
    own = as_numbers(summary_dict)
    numbers = context.main_numbers(own, source)
    for key in own.keys() - numbers.keys():
        del summary_dict[key]
    summary_dict.update({key: value for key, value in numbers.items() if value != own.get(key)})
    return numbers


class TestPass(EvalPass):
    """Walks a test loader once; each batch becomes cases, and each case is evaluated by itself.

    Args:
        cases_of: runs the test steps of a batch, given its number and data; returns data and output of each case.

    Attributes:
        last_case: number, data, output and results of the latest case, for the log line.
        numbers: what came out, once the test has ended.
    """

    __test__ = False  # not a test, whatever a runner of tests thinks of its name
    phase = "test"
    step_name = "eval_step"

    def __init__(
        self,
        owner: Any,
        context: PassContext,
        loader: ResumableLoader,
        after_iteration: Callable[[int], None],
        cases_of: Callable[[int, Any], Iterable[tuple[Any, Any]]],
    ) -> None:
        super().__init__(owner, context, loader, after_iteration)
        self._cases_of, self._cases = cases_of, 0
        self.last_case: tuple[int, Any, Any, Any] = (0, None, None, None)
        self.numbers: dict[str, float] = {}

    def test(self) -> dict[str, Any]:
        """Test from the first hook to the log line; return the summary with what `after_test_epoch` added to it."""
        context = self._context
        context.fire("before_test_epoch")
        summary_dict = self.walk(context.data_seed("test"), epoch=1)
        context.fire("after_test_epoch", summary_dict)
        self.numbers = follow_main(context, summary_dict, "after_test_epoch")
        text = get_log_string(self.numbers, time_dict=self.runner.clock.means())
        self._owner.log(f"[Test] {text}", level="SUCCESS")
        return summary_dict

    def _results(self, iteration: int, data_dict: Any) -> Iterator[tuple[dict[str, Any], Any]]:
        """One test batch, case by case; each weighs 1, and a whole batch as much as it has samples."""
        refuse_none(data_dict)
        owner, hooks = self._owner, self._context.hooks
        hooks.fire("before_test_step", iteration, data_dict)
        cases = list(self._cases_of(iteration, data_dict))
        samples = self.runner.place[2] if len(cases) == 1 else 1
        for data, output in cases:
            self._cases = number = self._cases + 1
            try:
                result_dict = self._checks.present(owner.eval_step(number, data, output))
            except SkipBatch as error:
                self._skipping.note(iteration, self.runner.place, error)
                continue
            self._checks.check(result_dict)
            hooks.fire("after_test_step", number, data, output, result_dict)
            self.last_case = (number, data, output, result_dict)
            yield result_dict, self._weights(samples, data, output, result_dict)
