"""One validation: a pass over each of its sets, between hooks that act once, and its lines and numbers."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vision3d_engine.data.resumable_loader import ResumableLoader
from vision3d_engine.logs.log_line import get_log_string
from vision3d_engine.loop.context import PassContext
from vision3d_engine.loop.eval_pass import EvalPass, follow_main
from vision3d_engine.loop.records import SampleRecords
from vision3d_engine.loop.runner import Runner


class Validation:
    """Validates on one set, or on several by name, whose numbers are then called ``NAME/key``.

    What a set gives depends on its name and its data alone, neither on other sets nor on their order.

    Args:
        owner: the trainer whose steps run; finds the name of the set at hand in ``val_name``.
        context: what all passes share.
        sets: returns the loaders by name, a single one under None; asked when ``before_val_epoch`` has acted.
        after_iteration: called after each batch with its number in its set.
        records: what steps keep of single samples.
        within: the iteration of the training epoch in whose midst it is, and how many there are; twice None elsewhere.

    Attributes:
        set_name: the set at hand, where there are several.
        runner: the walk over the set at hand; None before the first.
    """

    def __init__(
        self,
        owner: Any,
        context: PassContext,
        sets: Callable[[], Mapping[str | None, ResumableLoader]],
        after_iteration: Callable[[int], None],
        records: SampleRecords,
        within: tuple[int | None, int | None] = (None, None),
    ) -> None:
        self._owner, self._context, self._sets = owner, context, sets
        self._after_iteration, self._records = after_iteration, records
        self._within = dict(zip(("iteration", "max_iteration"), within, strict=True))
        self._passes: dict[str | None, EvalPass] = {}
        self._unmeasured: list[str] = []
        self.set_name: str | None = None
        self.runner: Runner | None = None

    @property
    def phase(self) -> str:
        """What is walked, for messages."""
        return "val" if self.set_name is None else f"val '{self.set_name}'"

    def validate(self) -> dict[str, Any]:
        """Validate from the first hook to the log lines; return the summary with what `after_val_epoch` added to it."""
        context, owner, epoch = self._context, self._owner, self._context.progress.epoch
        owner.set_eval_mode()
        context.fire("before_val_epoch", epoch)
        summary_dict: dict[str, Any] = {}
        for name, loader in self._sets().items():
            summary_dict |= self._walk(name, loader, epoch)
        self.set_name = None
        context.fire("after_val_epoch", epoch, summary_dict)
        numbers = follow_main(context, summary_dict, "after_val_epoch")
        for line in self._lines(numbers, epoch):
            owner.log(f"[Val] {line}", level="SUCCESS")
        step = context.counters.step_of("val", by_steps=context.by_steps)
        context.writers.scalars("val", numbers, step, **context.counters.row())
        owner.set_train_mode()
        return summary_dict

    def _walk(self, name: str | None, loader: ResumableLoader, epoch: int) -> dict[str, Any]:
        """Return the means over a set, under their keys in the summary."""
        one = EvalPass(self._owner, self._context, loader, self._after_iteration, name)
        self._passes[name], self.runner = one, one.runner
        self._records.open(name)
        self.set_name = name
        if name is not None:
            self._owner.val_name = name
        try:
            means = one.validate("val" if name is None else f"val/{name}", epoch)
        finally:
            if name is not None:
                self._owner.val_name = None
        if means.keys() == {"skipped"}:
            self._unmeasured.append(_prefix(name))
        return {_prefix(name) + key: mean for key, mean in means.items()}

    def is_unmeasured(self, key: str) -> bool:
        """Tell whether a key that is missing would be of a set whose batches were all left out."""
        return any(key.startswith(prefix) for prefix in self._unmeasured)

    def _lines(self, numbers: Mapping[str, float], epoch: int) -> Iterator[str]:
        """Yield a line for each set with its times, and one for what hooks have added beside them."""
        place: dict[str, Any] = {"epoch": epoch, "max_epoch": self._owner.max_epoch, **self._within}
        beside = dict(numbers)
        for name, one in self._passes.items():
            own = {key: beside.pop(key) for key in numbers if key.startswith(_prefix(name))}
            short = {key.removeprefix(_prefix(name)): number for key, number in own.items()}
            line = get_log_string(one.metrics.in_line(short), **place, time_dict=one.runner.clock.means())
            line += one.metrics.table(short)
            yield line if name is None else f"{name}, {line}"
        if beside:
            yield get_log_string(beside, **place)

    def first_not_finite(self, key: str) -> int | None:
        """Return the number of the batch in its set that first held NaN or infinity under a key of the summary."""
        for name, one in self._passes.items():
            if key.startswith(_prefix(name)):
                return one.meters.first_not_finite(key.removeprefix(_prefix(name)))
        return None


def _prefix(name: str | None) -> str:
    """Return what stands in front of the keys of a set in the summary."""
    return "" if name is None else f"{name}/"
