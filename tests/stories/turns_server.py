"""A process of a world whose networks take turns, case by case."""

import os

import torch

from tests.stories.serving import serve
from tests.turns import Turns

RANK = int(os.environ.get("RANK", "0"))


class BrokenOffError(Exception):
    """What ends a run early."""


class Breaking(Turns):
    """May end early, as a process that is killed; batches may weigh differently on the processes, also nothing."""

    def __init__(self, cfg, stop_at=None, void_rank=None, **options):
        super().__init__(cfg, **options)
        self._stop_at, self._void_rank = stop_at, void_rank

    def update(self, name, loss):
        super().update(name, loss, weight=self.loss_weight(None, None, None))

    def loss_weight(self, data_dict, output_dict, result_dict):
        return 0 if self._void_rank is not None and self.iteration == 2 and self._void_rank == RANK else 2

    def before_train_step(self, epoch, iteration, data_dict):
        if (epoch, iteration) == self._stop_at:
            raise BrokenOffError


def run(case):
    """Train once, and again from its checkpoint if the case says so; return the weights."""
    folder, stop_at, options = case["folder"], case.get("stop_at"), case.get("options", {})
    trainer = {"log_steps": 2, "device": "cpu", **case.get("trainer", {})}
    for resume in (False, True) if stop_at else (False,):
        cfg = {"exp": {"output_dir": folder}, "trainer": trainer | {"resume": resume}}
        one = Breaking(cfg, stop_at=None if resume or stop_at is None else tuple(stop_at), **options)
        try:
            one.run()
        except BrokenOffError:
            continue
    found = one.model.state_dict()
    whole = {name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in found.items()}
    return {"weights": {name: value.tolist() for name, value in whole.items()}, "epoch": one.epoch}


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(run)
