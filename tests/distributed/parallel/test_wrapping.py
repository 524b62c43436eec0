"""What is around a user's module."""

import torch
from torch import nn

from tests.toys import linear_model
from vision3d_engine.distributed.parallel import wrapping
from vision3d_engine.distributed.parallel.wrapping import broadcast, unwrap_model


def test_wrappers_are_taken_off():
    model = linear_model()
    assert unwrap_model(torch.compile(nn.DataParallel(model), backend="eager")) is model


class Replayed:
    """The main process writes its messages down; any other one reads them."""

    def __init__(self, messages=None):
        self.is_main = messages is None
        self.messages = [] if messages is None else list(messages)

    def broadcast(self, value):
        if self.is_main:
            self.messages.append(value.clone())
        else:
            value.copy_(self.messages.pop(0))


def tensors_of(fill):
    plain = [torch.float32, torch.float64, torch.bfloat16, torch.int16, torch.int64, torch.uint8, torch.bool]
    conjugate = torch.full((3,), complex(fill, -fill)).conj()
    odd = [torch.full((), fill), torch.zeros(0), torch.full((3, 2), fill).t(), conjugate]
    return [torch.full((3,), fill).to(dtype) for dtype in plain] + odd


def test_tensors_of_any_type_and_layout_become_those_of_the_main_process_in_one_message():
    main, here, there = Replayed(), tensors_of(1.0), tensors_of(0.0)
    broadcast(here, main)
    assert len(main.messages) == 1
    broadcast(iter(there), Replayed(main.messages))
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
    assert there[-1].is_conj()
    assert there[-2].stride() == here[-2].stride()


def test_large_tensors_travel_without_being_put_together(monkeypatch):
    monkeypatch.setattr(wrapping, "_MESSAGE_BYTES", 64)
    main, here = Replayed(), [torch.full((n,), 1.0) for n in (2, 40, 3, 7, 9)]
    broadcast(here, main)
    assert [len(message) // 4 for message in main.messages] == [2, 40, 10, 9]
    there = [torch.zeros_like(tensor) for tensor in here]
    broadcast(there, Replayed(main.messages))
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
