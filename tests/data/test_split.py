"""Batches taken apart into cases."""

import numpy as np
import pytest
import torch

from vision3d_engine import DataError, split_batch


def test_tensors_arrays_and_lists_are_taken_apart_along_the_batch():
    data = {"points": torch.arange(12).view(2, 2, 3), "name": ["a", "b"], "nest": {"y": np.array([5, 6])}}
    cases, outputs = split_batch(data, {"logits": torch.eye(2)})
    assert [case["name"] for case in cases] == ["a", "b"]
    assert torch.equal(cases[1]["points"], torch.arange(6, 12).view(2, 3))
    assert cases[0]["nest"]["y"] == 5
    assert torch.equal(outputs[1]["logits"], torch.tensor([0.0, 1.0]))


def test_packed_point_clouds_are_cut_by_their_lengths():
    lengths = torch.tensor([3, 0, 2])
    data = {"points": torch.arange(5.0)[:, None].expand(5, 3), "lengths": lengths, "label": torch.tensor([7, 8, 9])}
    cases, outputs = split_batch(data, {"scores": torch.arange(5), "class": torch.arange(3)})
    assert [len(case["points"]) for case in cases] == [3, 0, 2]
    assert [case["label"].item() for case in cases] == [7, 8, 9]
    assert [case["lengths"].item() for case in cases] == [3, 0, 2]
    assert torch.equal(outputs[2]["scores"], torch.tensor([3, 4]))
    assert outputs[2]["class"].item() == 2


def test_nested_clouds_have_lengths_of_their_own():
    data = {
        "source": {"points": np.zeros((4, 3)), "lengths": np.array([1, 3])},
        "target": {"points": np.zeros((5, 3)), "lengths": [2, 3]},
        "batch_size": 2,
    }
    cases, _ = split_batch(data, {})
    assert [len(case["source"]["points"]) for case in cases] == [1, 3]
    assert [len(case["target"]["points"]) for case in cases] == [2, 3]


def test_levels_of_detail_are_cut_level_by_level():
    data = {
        "points": [torch.arange(6.0).view(6, 1), torch.arange(3.0).view(3, 1)],
        "lengths": [torch.tensor([4, 2]), torch.tensor([2, 1])],
    }
    cases, outputs = split_batch(data, {"coarse": torch.arange(3)})
    assert [[len(level) for level in case["points"]] for case in cases] == [[4, 2], [2, 1]]
    assert [len(output["coarse"]) for output in outputs] == [2, 1]


def test_what_belongs_to_the_whole_batch_is_shared():
    shared = {"scale": 2.0, "name": "set", "none": None, "step": torch.tensor(3)}
    cases, _ = split_batch({"x": torch.zeros(2, 3), **shared}, {})
    assert all(case[key] is shared[key] for case in cases for key in shared)


@pytest.mark.parametrize(
    ("data", "output", "message"),
    [
        (
            {"x": torch.zeros(2, 3)},
            {"y": torch.zeros(3, 4)},
            r"output_dict\['y'\]: it is a tensor of shape \(3, 4\), not 2",
        ),
        ({"x": torch.zeros(2), "n": {"l": [1, 2, 3]}}, {}, r"data_dict\['n'\]\['l'\]: it is a list of 3, not 2 cases"),
        ({"x": torch.zeros(4, 3), "lengths": [3, 2]}, {}, r"data_dict\['x'\].*nor the sum of 'lengths' \(5\)"),
        ({"a": 1}, {}, "cannot tell the batch size"),
    ],
)
def test_what_cannot_be_split_is_an_error_that_names_the_key(data, output, message):
    with pytest.raises(DataError, match=message):
        split_batch(data, output)


def test_a_batch_size_says_how_many_cases_there_are():
    cases, _ = split_batch({"points": {"x": torch.zeros(3, 2)}, "batch_size": 3}, {})
    assert len(cases) == 3
