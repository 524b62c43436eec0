"""Takes a set in by parts, and compares what came of it."""

from itertools import pairwise

import pytest
import torch


def merged(make, batches, cuts):
    """Take in batches by several metrics, cut at some places, and merge them into one that is fresh."""
    edges = [0, *sorted(cuts), len(batches)]
    parts = [taken_in(make, batches[start:end]) for start, end in pairwise(edges)]
    total = make()
    total.merge_state(parts)
    return total


def taken_in(make, batches):
    metric = make()
    for batch in batches:
        metric.update(*batch)
    return metric


def assert_same(one, other):
    """Same counts to the digit, other sums to their rounding, and so the numbers."""
    sums, expected = one.sums, other.sums
    for name, held in sums.items():
        if held.is_floating_point():
            torch.testing.assert_close(held.cpu(), expected[name].cpu(), rtol=1e-12, atol=1e-12)
        else:
            assert torch.equal(held.cpu(), expected[name].cpu())
    assert one.compute() == pytest.approx(other.compute(), rel=1e-12, abs=1e-12, nan_ok=True)
