"""What is around a user's module."""

import torch
from torch import nn

from tests.toys import linear_model
from vision3d_engine.distributed.parallel.wrapping import unwrap_model


def test_wrappers_are_taken_off():
    model = linear_model()
    assert unwrap_model(torch.compile(nn.DataParallel(model), backend="eager")) is model
