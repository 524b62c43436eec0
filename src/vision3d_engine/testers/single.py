"""Testing with one case a batch."""

from collections.abc import Iterable
from typing import Any

from vision3d_engine.testers.base import BaseTester


class SingleTester(BaseTester):
    """Tests where a batch is one case.

    Pipeline: before_test_epoch; for each iteration before_test_step, test_step, eval_step, after_test_step; then
    after_test_epoch.
    """

    def _cases(self, iteration: int, data_dict: Any) -> Iterable[tuple[Any, Any]]:
        return [(data_dict, self._tested(iteration, data_dict))]
