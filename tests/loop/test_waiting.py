"""How often a pass reads a number from the device: never between log lines, once at each."""

from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.toys import (
    ToyBatchTester,
    ToyEpochTrainer,
    ToyIterTrainer,
    ToySingleTester,
    rows_loader,
    save_weights,
    settings,
)

READS = {"item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "__array__", "__contains__"}
WAITING_OPS = ("aten._local_scalar_dense", "aten.is_nonzero", "aten.equal", "aten.nonzero", "aten.allclose")


class Watched(torch.Tensor):
    """A tensor that stands for one on a device: writes down when python asks for its numbers.

    What torch computes from it is watched too.
    """

    reads: ClassVar[list] = []
    is_counted = False

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name not in READS:
            return super().__torch_function__(func, types, args, kwargs or {})
        cls.reads.append(name)
        cls.is_counted = True
        try:
            return super().__torch_function__(func, types, args, kwargs or {})
        finally:
            cls.is_counted = False


class WaitingOps(TorchDispatchMode):
    """Writes down operations of torch that would wait for a device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if str(func).startswith(WAITING_OPS) and not Watched.is_counted:
            Watched.reads.append(str(func))
        return func(*args, **(kwargs or {}))


class Marked:
    """Notes how many reads each step has begun with, counted from the pass's first."""

    def before_train_epoch(self, epoch):
        Watched.reads, self.marks = [], []
        super().before_train_epoch(epoch)

    before_val_epoch = before_train_epoch

    def train_step(self, epoch, iteration, data_dict):
        self.marks.append(len(Watched.reads))
        with torch.enable_grad():
            output_dict, result_dict = super().train_step(epoch, iteration, data_dict)
        return output_dict, {key: value.as_subclass(Watched) for key, value in result_dict.items()}

    def val_step(self, epoch, iteration, data_dict):
        self.marks.append(len(Watched.reads))
        output_dict, result_dict = super().val_step(epoch, iteration, data_dict)
        return output_dict, {key: value.as_subclass(Watched) for key, value in result_dict.items()}

    def after_train_epoch(self, epoch, summary_dict):
        self.train_marks = [*self.marks, len(Watched.reads)]
        super().after_train_epoch(epoch, summary_dict)

    def after_val_epoch(self, epoch, summary_dict):
        self.val_marks = [*self.marks, len(Watched.reads)]
        super().after_val_epoch(epoch, summary_dict)


def steps_between(marks):
    return [after - before for before, after in pairwise(marks)]


@pytest.mark.parametrize("kind", [ToyEpochTrainer, ToyIterTrainer])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("log_steps", [4, 100])
def test_training_and_validation_read_the_device_once_a_log_line_and_never_between(kind, steps, log_steps, tmp_path):
    class Trainer(Marked, kind):
        pass

    cfg = settings(tmp_path, log_steps=log_steps, grad_acc_steps=steps, save_every="1000 iterations")
    trainer = Trainer(cfg, rows_loader(22), rows_loader(20))
    with WaitingOps():
        trainer.run()
    lines = [int(iteration % log_steps == 0) for iteration in range(1, 11)]
    assert steps_between(trainer.train_marks)[:-1] == lines
    assert steps_between(trainer.val_marks)[:-1] == [0] * 9
    assert steps_between(trainer.val_marks)[-1] == 1


def test_the_watch_sees_a_step_that_reads(tmp_path):
    class Careless(Marked, ToyEpochTrainer):
        def after_train_step(self, epoch, iteration, data_dict, output_dict, result_dict):
            float(result_dict["loss"].detach())
            bool(result_dict["mae"].detach().as_subclass(torch.Tensor) > 0)

    trainer = Careless(settings(tmp_path), rows_loader(8))
    with WaitingOps():
        trainer.run()
    assert min(steps_between(trainer.train_marks)) >= 2


@pytest.mark.parametrize("kind", [ToySingleTester, ToyBatchTester])
def test_a_test_reads_only_for_its_log_lines_and_once_at_the_end(kind, tmp_path):
    class Tester(kind):
        def before_test_epoch(self):
            Watched.reads, self.marks = [], []

        def test_step(self, iteration, data_dict):
            self.marks.append(len(Watched.reads))
            return super().test_step(iteration, data_dict)

        def eval_step(self, iteration, data_dict, output_dict):
            result_dict = super().eval_step(iteration, data_dict, output_dict)
            result_dict |= {"twice": 2 * result_dict["mae"]}
            return {key: value.as_subclass(Watched) for key, value in result_dict.items()}

        def after_test_epoch(self, summary_dict):
            self.marks.append(len(Watched.reads))

    save_weights(tmp_path)
    tester = Tester(settings(tmp_path, log_steps=3), rows_loader(8, batch_size=1))
    with WaitingOps():
        tester.run()
    assert steps_between(tester.marks) == [0, 0, 1, 0, 0, 1, 0, 1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_no_step_between_log_lines_waits_for_the_device(tmp_path):
    """Torch itself raises when something waits; 20 steps of training, validation and a test."""

    class Strict:
        def before_train_step(self, epoch, iteration, data_dict):
            torch.cuda.set_sync_debug_mode("error" if 1 < iteration < 21 else "default")

        def after_train_step(self, epoch, iteration, data_dict, output_dict, result_dict):
            if iteration >= 21:
                torch.cuda.set_sync_debug_mode("default")

        before_val_step = before_train_step
        after_val_step = after_train_step

    class Trainer(Strict, ToyEpochTrainer):
        pass

    cfg = settings(tmp_path, log_steps=21, device="cuda")
    loaders = [rows_loader(44, pin_memory=True) for _ in range(2)]
    try:
        Trainer(cfg, *loaders).run()
    finally:
        torch.cuda.set_sync_debug_mode("default")

    class Tester(ToySingleTester):
        def before_test_step(self, iteration, data_dict):
            torch.cuda.set_sync_debug_mode("error" if 1 < iteration < 21 else "default")

    save_weights(tmp_path)
    try:
        Tester(settings(tmp_path, log_steps=21, device="cuda"), rows_loader(22, batch_size=1, pin_memory=True)).run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
