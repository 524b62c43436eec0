"""Testing with several cases a batch."""

from collections.abc import Iterable
from typing import Any

from vision3d_engine.core.errors import DataError
from vision3d_engine.data.split import split_batch
from vision3d_engine.testers.base import BaseTester


class BatchTester(BaseTester):
    """Tests where a batch holds several cases, each evaluated by itself.

    Pipeline: before_test_epoch; for each batch before_test_step, test_step, split_batch_dict and, for each case,
    eval_step, after_test_step; then after_test_epoch. ``iteration`` counts batches in before_test_step, test_step and
    split_batch_dict, and cases in eval_step and after_test_step.
    """

    def split_batch_dict(self, iteration: int, data_dict: Any, output_dict: Any) -> tuple[list[Any], list[Any]]:
        """Return a list of data dicts and a list of output dicts, one of each for every case.

        By default tensors, arrays and lists are taken apart along the batch, packed point clouds by ``lengths``,
        ``offset`` or ``batch``, at any depth; see `vision3d_engine.split_batch`. Override it for batches of another
        make.

        Raises:
            DataError: naming the path of a value that cannot be split.
        """
        return split_batch(data_dict, output_dict)

    def _cases(self, iteration: int, data_dict: Any) -> Iterable[tuple[Any, Any]]:
        output_dict = self._tested(iteration, data_dict)
        data_dicts, output_dicts = self.split_batch_dict(iteration, data_dict, output_dict)
        if len(data_dicts) != len(output_dicts):
            message = f"split_batch_dict returned {len(data_dicts)} data dicts and {len(output_dicts)} output dicts"
            raise DataError(message)
        return zip(data_dicts, output_dicts, strict=True)
