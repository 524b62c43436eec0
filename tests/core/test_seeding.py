"""Generators that stand behind a block where they stood before it."""

import random

import numpy as np
import torch

from vision3d_engine.core.seeding import kept_generators, seed_everything


def drawn():
    return torch.rand(()).item(), np.random.uniform(), random.random()  # noqa: NPY002


def test_what_a_block_draws_and_seeds_changes_no_number_behind_it():
    seed_everything(3)
    drawn()
    random.gauss()  # keeps the second number of a pair
    with kept_generators():
        expected = drawn(), random.gauss()
    with kept_generators():
        seed_everything(7)
    assert (drawn(), random.gauss()) == expected
