"""One pass over validation or test data: without gradients, every case counted once."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch

from vision3d_engine.core.errors import SkipBatch
from vision3d_engine.core.seeding import StepSeeds, derived_seed
from vision3d_engine.data.exact_length import at_most
from vision3d_engine.data.loader_sets import title_of
from vision3d_engine.data.prefetcher import Prefetcher
from vision3d_engine.data.resumable_loader import ResumableLoader
from vision3d_engine.logs.log_line import get_log_string
from vision3d_engine.loop.case_results import CaseResults
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
        meters: what takes in the numbers of the steps.
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
        meters: Any = None,
    ) -> None:
        world = context.world
        self._owner, self._context, self._loader = owner, context, loader
        self._checks = ResultChecker(self.step_name)
        self._seeds: StepSeeds | None = None
        self._weighs_all_alike = context.hooks.is_default("metric_weight")
        loader.counts_samples = context.progress.counts_samples
        self.meters = RunningMeans(context.counters.sum_up) if meters is None else meters
        self.metrics, self._name = context.metrics.new_pass(), name
        self._skipping = SkippedBatches(context, loader, self.meters, self.phase, name=name)
        title = self.phase if name is None else f"{self.phase} '{name}'"
        self.runner = Runner(
            title,
            self._iterate,
            after_iteration,
            prefetcher=Prefetcher(world.device, host_tensors=context.host_tensors),
            bar=context.progress_bar(title),
            where=self._skipping.where,
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
        is_walked = self._context.metrics.walking(self.metrics, self._name)
        with is_walked, self._context.parallel.local_forward(self._owner.model, length):
            self._walk(seed, epoch, length)
        means = with_skipped(self.meters.means(), self.meters)  # first: it brings the metrics of earlier attempts
        return self.metrics.beside(means)

    def _walk(self, seed: int, epoch: int, length: int | None) -> None:
        """Run over the batches, ``length`` of them where that is known."""
        self.runner.run(islice(self._loader.batches(seed, epoch), self._context.settings.limit_batches), length)

    def _iterate(self, iteration: int, data_dict: Any) -> None:
        self._context.progress.iteration = iteration
        if self._seeds is not None:
            self._seeds.seed(iteration)
        mark = self.metrics.begin_step()
        try:
            with torch.no_grad():
                results = list(self._results(iteration, data_dict))
        except SkipBatch as error:
            self.metrics.undo(mark)
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

    Batches that an earlier attempt has done are left out. What a step draws depends on the number of its batch alone,
    so that neither this nor the number of processes changes a result.

    Args:
        loader: the data, as `RemainingBatches`.
        cases_of: runs the test steps of a batch, given its number and data; returns data and output of each case.
        results: takes in the numbers of the cases, and knows which batches are done.

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
        loader: Any,
        after_iteration: Callable[[int], None],
        cases_of: Callable[[int, Any], Iterable[tuple[Any, Any]]],
        results: CaseResults,
    ) -> None:
        super().__init__(owner, context, loader, after_iteration, meters=results)
        self._cases_of, self._cases, self._results_of = cases_of, 0, results
        results.follow(self.metrics)
        self._remaining = loader.remaining
        seeds = StepSeeds(derived_seed(context.seed, "test"), context.world.device)
        self._batch_seeds = seeds if loader.is_positioned else None  # else they are set before a batch is read
        self.last_case: tuple[int, Any, Any, Any] = (0, None, None, None)
        self.numbers: dict[str, float] = {}

    def test(self) -> dict[str, Any]:
        """Test from the first hook to the log line; return the summary with what `after_test_epoch` added to it."""
        context = self._context
        context.metrics.forget_passes()
        context.fire("before_test_epoch")
        summary_dict = self.walk(context.data_seed("test"), epoch=1)
        context.fire("after_test_epoch", summary_dict)
        self.numbers = follow_main(context, summary_dict, "after_test_epoch")
        self._results_of.finish(self.numbers)
        text = get_log_string(self.metrics.in_line(self.numbers), time_dict=self.runner.clock.means())
        self._owner.log(f"[Test] {text}{self.metrics.table(self.numbers)}", level="SUCCESS")
        context.metrics.tell_unused()
        return summary_dict

    def _walk(self, seed: int, epoch: int, length: int | None) -> None:
        done, limit = self._results_of.done_here, self._context.settings.limit_batches
        left = None if limit is None else limit - len(done)
        self.runner.run(islice(self._remaining(seed, epoch, done), left), length, len(done))

    def _iterate(self, iteration: int, data_dict: Any) -> None:
        """Walk one batch; its number counts also those that an earlier attempt has done."""
        iteration = self.runner.place[1]
        self._cases += self._results_of.open_batch(iteration, self._loader.samples_at(self.runner.place))
        if self._batch_seeds is not None:
            self._batch_seeds.seed(self._results_of.batch)
        super()._iterate(iteration, data_dict)
        self._results_of.close_batch()

    def _results(self, iteration: int, data_dict: Any) -> Iterator[tuple[dict[str, Any], Any]]:
        """One test batch, case by case; each weighs 1, and a whole batch as much as it has samples."""
        refuse_none(data_dict)
        owner, hooks = self._owner, self._context.hooks
        hooks.fire("before_test_step", iteration, data_dict)
        cases = list(self._cases_of(iteration, data_dict))
        samples = self.runner.place[2] if len(cases) == 1 else 1
        for place, (data, output) in enumerate(cases):
            self._cases = number = self._cases + 1
            mark = self.metrics.begin_step()
            self._results_of.open_case(place, len(cases), partial(owner.sample_name, number, data))
            try:
                result_dict = self._checks.present(owner.eval_step(number, data, output))
            except SkipBatch as error:
                self.metrics.undo(mark)
                self._skipping.note(iteration, self.runner.place, error)
                continue
            self._checks.check(result_dict)
            hooks.fire("after_test_step", number, data, output, result_dict)
            self.last_case = (number, data, output, result_dict)
            self._results_of.close_case()
            yield result_dict, self._weights(samples, data, output, result_dict)
