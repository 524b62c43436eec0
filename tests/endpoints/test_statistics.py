"""The figures of tensors of any kind."""

import pytest
import torch

from vision3d_engine.endpoints.statistics import finite_values, statistics


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (torch.tensor([0.0, 2.0, 4.0, 0.0]), [1.5, 2.75**0.5, 0.5, 0]),
        (torch.tensor([1.0, float("nan"), float("inf"), 3.0]), [2, 1, 0, 2]),
        (torch.tensor([60000.0, 60000.0], dtype=torch.float16), [60000, 0, 0, 0]),
        (torch.tensor([1, 3, 0, 0]), [1, 1.5**0.5, 0.5, 0]),
        (torch.tensor([True, False]), [0.5, 0.5, 0.5, 0]),
        (torch.tensor([3 + 4j, 0]), [2.5, 2.5, 0.5, 0]),
        (torch.empty(0, 3), [0, 0, 0, 0]),
        (torch.full((2,), float("nan")), [0, 0, 0, 2]),
        (torch.tensor(7.0), [7, 0, 0, 0]),
    ],
)
def test_mean_and_deviation_of_the_finite_the_share_of_zeros_and_the_number_of_the_rest(values, expected):
    assert statistics(values).tolist() == pytest.approx(expected)


def test_a_histogram_gets_the_finite_values_as_floats():
    values = torch.tensor([1.0, float("nan"), 2.0], dtype=torch.bfloat16)
    assert torch.equal(finite_values(values), torch.tensor([1.0, 2.0]))
