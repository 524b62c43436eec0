"""A data set that gives other samples the second time is found out."""

import itertools
import os

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from vision3d_engine import check_determinism
from vision3d_engine.core.errors import DataError


class Base(Dataset):
    def __len__(self):
        return 30


def test_a_data_set_that_draws_from_the_global_generators_passes():
    class Good(Base):
        def __getitem__(self, index):
            return {"x": torch.randn(3), "y": np.random.normal(size=2), "name": str(index), "nan": float("nan")}  # noqa: NPY002

    check_determinism(Good())


def test_a_generator_of_its_own_is_found_out():
    class Own(Base):
        rng = np.random.default_rng(0)

        def __getitem__(self, index):
            return {"x": torch.zeros(3), "y": {"z": self.rng.normal(size=2)}}

    with pytest.raises(DataError, match=r"sample \d+ is another one when loaded again .*\['y'\]\['z'\]"):
        check_determinism(Own())


def test_what_depends_on_the_process_is_found_out():
    class Process(Base):
        def __getitem__(self, index):
            return {"x": os.getpid()}

    with pytest.raises(DataError, match=r"when loaded in another process: \['x'\]"):
        check_determinism(Process())


def test_what_depends_on_the_order_is_found_out():
    class Counting(Base):
        count = itertools.count()

        def __getitem__(self, index):
            return {"x": next(self.count)}

    with pytest.raises(DataError, match="in another order"):
        check_determinism(Counting(), count=3)
