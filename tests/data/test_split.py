"""Batches taken apart into cases."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from vision3d_engine import DataError, split_batch
from vision3d_engine.core.compare import differences


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
        ({"x": torch.zeros(4, 3), "lengths": [3, 2]}, {}, r"data_dict\['x'\].*nor 5 points of 'lengths'"),
        ({"a": 1}, {}, "cannot tell the batch size"),
    ],
)
def test_what_cannot_be_split_is_an_error_that_names_the_key(data, output, message):
    with pytest.raises(DataError, match=message):
        split_batch(data, output)


@pytest.mark.parametrize("size", [3, np.int64(3), torch.tensor(3)])
def test_a_batch_size_says_how_many_cases_there_are(size):
    cases, _ = split_batch({"points": {"x": torch.zeros(3, 2), "many": torch.zeros(3)}, "batch_size": size}, {})
    assert len(cases) == 3


# ------------------------------------------------------------------------------------------- the layouts of the field


def rows(start, count):
    """Points that differ from all others of a batch."""
    return torch.arange(start, start + count, dtype=torch.float32)[:, None].expand(count, 3)


def equal(found, expected):
    return list(differences(found, expected)) == []


def test_a_batch_of_pointcept_is_cut_by_its_offset():
    data = {"coord": rows(0, 5), "segment": torch.arange(5), "offset": torch.tensor([3, 5]), "name": ["a", "b"]}
    cases, outputs = split_batch(data, {"seg_logits": rows(0, 5)})
    assert equal(cases[0], {"coord": rows(0, 3), "segment": torch.arange(3), "offset": torch.tensor([3]), "name": "a"})
    assert equal(cases[1]["offset"], torch.tensor([2]))
    assert equal(outputs[1], {"seg_logits": rows(3, 2)})


@pytest.mark.parametrize("index", [[0, 0, 1, 1, 1], [1, 0, 1, 0, 1]])
@pytest.mark.parametrize("kind", [torch.tensor, np.array, np.uint8, list])
def test_points_are_cut_by_the_index_of_their_case_also_out_of_order(index, kind):
    data = {"pos": rows(0, 5), "array": np.arange(5), "batch": kind(index), "batch_size": 3, "y": torch.arange(3)}
    cases, outputs = split_batch(data, {"scores": torch.arange(5)})
    own = [[i for i, case in enumerate(index) if case == number] for number in range(3)]
    assert [output["scores"].tolist() for output in outputs] == own
    assert [case["array"].tolist() for case in cases] == own
    assert [list(case["batch"]) for case in cases] == [[0] * len(points) for points in own]
    assert cases[2]["pos"].shape == (0, 3)


def test_stacked_pyramids_of_geotransformer_are_cut_into_pairs():
    """First the reference clouds of all cases, then the source clouds; rows of coarser levels in shorter lists."""
    data = {
        "points": [rows(0, 8), rows(100, 5)],
        "lengths": [torch.tensor([1, 2, 2, 3]), torch.tensor([1, 1, 1, 2])],
        "neighbors": [torch.arange(8)[:, None], torch.arange(5)[:, None]],
        "subsampling": [torch.arange(5)[:, None]],
        "features": torch.arange(8)[:, None],
        "transform": torch.arange(2)[:, None, None].expand(2, 4, 4),
        "batch_size": 2,
    }
    cases, outputs = split_batch(data, {"feats": [torch.arange(8), torch.arange(5)], "per_cloud": torch.arange(4)})
    assert [case["features"][:, 0].tolist() for case in cases] == [[0, 3, 4], [1, 2, 5, 6, 7]]
    assert [case["subsampling"][0][:, 0].tolist() for case in cases] == [[0, 2], [1, 3, 4]]
    assert [[level.tolist() for level in case["lengths"]] for case in cases] == [[[1, 2], [1, 1]], [[2, 3], [1, 2]]]
    assert [case["transform"][0, 0].item() for case in cases] == [0, 1]
    assert [[level.tolist() for level in output["feats"]] for output in outputs] == [
        [[0, 3, 4], [0, 2]],
        [[1, 2, 5, 6, 7], [1, 3, 4]],
    ]
    assert [output["per_cloud"].tolist() for output in outputs] == [[0, 2], [1, 3]]


def test_lists_of_a_kpconv_pyramid_may_end_with_an_empty_level():
    data = {
        "points": [rows(0, 5), rows(9, 3)],
        "pools": [torch.arange(3)[:, None], torch.zeros(0, 1)],
        "lengths": [torch.tensor([3, 2]), torch.tensor([1, 2])],
    }
    cases, _ = split_batch(data, {})
    assert [case["pools"][0][:, 0].tolist() for case in cases] == [[0], [1, 2]]
    assert [case["pools"][1].shape for case in cases] == [(0, 1)] * 2


def test_lists_of_a_pyramid_may_hold_nothing_but_an_empty_level():
    data = {"points": [rows(0, 5), rows(9, 0)], "pools": [torch.zeros(0, 1)], "lengths": [[3, 2], [0, 0]]}
    cases, _ = split_batch(data, {})
    assert [[level.shape for level in case["pools"]] for case in cases] == [[(0, 1)]] * 2


def test_a_pyramid_may_have_one_level_and_one_case():
    data = {"points": [rows(0, 5)], "features": rows(0, 5), "lengths": [torch.tensor([5])], "names": ["a"]}
    ((case,), _) = split_batch(data, {"feats": [torch.arange(5)], "boxes": [rows(0, 2)]})
    assert equal(case, data | {"lengths": [torch.tensor(5)], "names": "a"})


def test_a_stacked_pair_may_have_one_level():
    data = {"points": [rows(0, 5)], "lengths": [torch.tensor([2, 3])], "neighbors": [rows(0, 5)], "batch_size": 1}
    ((case,), (output,)) = split_batch(data, {"feats": [torch.arange(5)]})
    assert equal(case, data)
    assert equal(output["feats"], [torch.arange(5)])


def test_stacked_says_which_tensors_have_one_row_a_case_if_there_are_as_many_points():
    data = {"coord": rows(0, 2), "segment": torch.tensor([3, 4]), "class": torch.tensor([5, 6]), "offset": [1, 2]}
    cases, outputs = split_batch(data, {"seg": rows(0, 2), "nest": {"class": torch.eye(2)}}, stacked=["class"])
    assert [(case["coord"].shape, case["segment"].tolist()) for case in cases] == [((1, 3), [3]), ((1, 3), [4])]
    assert [case["class"].item() for case in cases] == [5, 6]
    assert [(output["seg"].shape, output["nest"]["class"].shape) for output in outputs] == [((1, 3), (2,))] * 2


def test_a_tensor_is_not_cut_by_a_cloud_that_lies_elsewhere_in_the_data():
    data = {"scan": {"points": rows(0, 3), "lengths": [1, 2]}, "other": {"points": rows(0, 4), "lengths": [1, 3]}}
    with pytest.raises(DataError, match=r"data_dict\['x'\]: .* not 2 cases"):
        split_batch(data | {"x": torch.zeros(3)}, {})


@dataclass(frozen=True)
class Scan:
    points: torch.Tensor
    lengths: torch.Tensor


class Pair(NamedTuple):
    source: Any
    target: Any


def test_the_number_of_cases_is_found_at_any_depth():
    source, target = Scan(rows(0, 4), torch.tensor([1, 3])), Scan(rows(9, 5), torch.tensor([2, 3]))
    nested = {"name": ["a", "b"], "pair": Pair(SimpleNamespace(scan=source), {"levels": [target, source]})}
    cases, _ = split_batch(nested, {})
    pair = cases[1]["pair"]
    assert isinstance(pair, Pair)
    assert equal(pair.source.scan, Scan(rows(1, 3), torch.tensor(3)))
    assert equal(pair.target["levels"][0], Scan(rows(11, 3), torch.tensor(3)))


def test_outputs_are_cut_by_what_the_data_say_of_them_wherever_that_is():
    data = {
        "source": {"points": rows(0, 4), "lengths": torch.tensor([1, 3])},
        "target": {"points": rows(0, 4), "lengths": torch.tensor([2, 2])},
    }
    _, outputs = split_batch(data, {"source": {"scores": torch.arange(4)}, "target": {"scores": torch.arange(4)}})
    assert [output["source"]["scores"].tolist() for output in outputs] == [[0], [1, 2, 3]]
    assert [output["target"]["scores"].tolist() for output in outputs] == [[0, 1], [2, 3]]
    in_2_ways = r"output_dict\['scores'\].*in 2 ways: clouds of \[1, 3\] points or clouds of \[2, 2\] points"
    with pytest.raises(DataError, match=in_2_ways):
        split_batch(data, {"scores": torch.arange(4)})


def test_lengths_may_lie_like_what_they_cut():
    data = {"points": {"a": rows(0, 4), "b": rows(0, 4)}, "lengths": {"a": [1, 3], "b": [2, 2]}}
    cases, _ = split_batch(data, {})
    assert [len(case["points"]["a"]) for case in cases] == [1, 3]
    assert [case["lengths"] for case in cases] == [{"a": 1, "b": 2}, {"a": 3, "b": 2}]


def test_lengths_may_name_entries_and_outputs():
    data = {"points": rows(0, 4), "voxels": rows(0, 4), "lengths": {"points": [1, 3], "voxels": [2, 2], "pred": [1, 3]}}
    cases, outputs = split_batch(data, {"pred": rows(0, 4), "voxels": {"features": rows(0, 4)}})
    assert [(len(case["points"]), len(case["voxels"])) for case in cases] == [(1, 2), (3, 2)]
    assert [(len(each["pred"]), len(each["voxels"]["features"])) for each in outputs] == [(1, 2), (3, 2)]
    _, outputs = split_batch({"scan": data, "batch_size": 2}, {"scan": {"pred": rows(0, 4)}})
    assert [len(each["scan"]["pred"]) for each in outputs] == [1, 3]


class Graphs:
    """The documented interface of torch_geometric's Batch."""

    def __init__(self, graphs, batch):
        self.graphs, self.batch = graphs, batch

    def to_data_list(self):
        return self.graphs


class Tensors(dict):
    """The documented interface of tensordict's TensorDict."""

    ndim = 1

    def unbind(self, dim):
        return tuple(Tensors({key: value[i] for key, value in self.items()}) for i in range(2))


def test_objects_that_know_their_cases_are_asked_for_them():
    packed = torch.nn.utils.rnn.pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])
    data = {"graphs": Graphs(["a", "b"], torch.tensor([0, 0, 1])), "packed": packed, "dict": Tensors(x=torch.eye(2))}
    data["nested"] = torch.nested.nested_tensor([torch.ones(3), torch.ones(1)], layout=torch.jagged)
    cases, outputs = split_batch(data, {"per_node": torch.arange(3), "label": torch.arange(2)})
    assert [case["graphs"] for case in cases] == ["a", "b"]
    assert [len(case["packed"]) for case in cases] == [len(case["nested"]) for case in cases] == [3, 1]
    assert equal(cases[1]["dict"], Tensors(x=torch.tensor([0.0, 1.0])))
    assert [output["per_node"].tolist() for output in outputs] == [[0, 1], [2]]


def test_a_list_with_one_entry_a_case_is_not_taken_for_levels():
    clouds = [rows(0, 3), rows(3, 1)]
    data = {
        "points": [rows(0, 4), rows(0, 3)],
        "lengths": [[3, 1], [2, 1]],
        "clouds": clouds,
        "meta": [{"id": 1}, {"id": 2}],
        "pairs": [[1, 2, 3], [4]],
    }
    cases, _ = split_batch(data, {})
    assert all(equal(case["clouds"], cloud) for case, cloud in zip(cases, clouds, strict=True))
    assert [case["meta"] for case in cases] == data["meta"]
    assert [case["pairs"] for case in cases] == data["pairs"]


@pytest.mark.parametrize(
    "label", [torch.tensor([3, 5]), torch.tensor([[0, 1], [2, 3]]), torch.tensor([0.5, 1.5]), torch.zeros(2).bfloat16()]
)
def test_an_entry_named_offset_that_packs_nothing_is_an_entry_like_any_other(label):
    cases, _ = split_batch({"x": torch.zeros(2, 4), "offset": label}, {})
    assert equal(cases[1]["offset"], label[1])


def levels(*counts):
    return [{"points": rows(0, count), "lengths": torch.tensor([1, 2])} for count in counts]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"levels": levels(3, 3, 4)},
            r"data_dict\['levels'\]\[2\]\['points'\]: .*\(4, 3\), not 2 cases, nor 3 p",
        ),
        ({"points": [rows(0, 3), rows(0, 9)], "lengths": [[1, 2], [1, 1]]}, r"data_dict\['points'\]\[1\]: .*\(9, 3\)"),
        (
            {"batch_size": 2, "s": {"lengths": [1, 2, 3]}},
            r"data_dict\['s'\]\['lengths'\]: it is a list of 3, not 2 cases",
        ),
        (
            {"x": torch.zeros(2), "scan": SimpleNamespace(grid=object())},
            r"data_dict\['scan'\]\.grid: it is an object",
        ),
        ({"x": torch.zeros(2), "pair": Pair({1, 2}, 3)}, r"data_dict\['pair'\]\.source: .*override split_batch_dict"),
        ({"x": torch.zeros(3), "g": Graphs(["a"], None), "batch_size": 3}, r"data_dict\['g'\]: .*not 3 cases"),
        (
            {"x": torch.zeros(2, 4), "lengths": [1, 1]},
            r"data_dict\['x'\].*in 2 ways: 2 cases or clouds of \[1, 1\] .*Override.*split_batch.*stacked=\[",
        ),
        ({"x": rows(0, 5), "lengths": [3, 2], "offset": [2, 5]}, r"'x'\].*2 ways: clouds of \[3, 2\] .* of \[2, 3\]"),
        ({"coords": rows(0, 5), "names": ["a", "b"], "batch_size": 2}, "the case of each point, such as coordinates"),
    ],
)
def test_an_error_says_where_what_was_expected_and_what_to_do(data, message):
    with pytest.raises(DataError, match=message):
        split_batch(data, {})


# ------------------------------------------------------------------------------------------- the law


COUNTS = st.lists(st.lists(st.integers(0, 5), min_size=2, max_size=2), min_size=1, max_size=4)


def cases_of(counts):
    """One case for each pair of counts: a pyramid of two levels, and what belongs to the case."""
    starts = [10.0 * number for number in range(len(counts))]
    return [
        {"levels": [rows(start, count) for count in pair], "label": torch.tensor(start), "name": f"case {start}"}
        for start, pair in zip(starts, counts, strict=True)
    ]


def collate(cases, packing):
    """Pack the points of each level, as the loaders of the field do."""
    batch = {
        "levels": [torch.cat(level) for level in zip(*(case["levels"] for case in cases), strict=True)],
        "label": torch.stack([case["label"] for case in cases]),
        "name": [case["name"] for case in cases],
    }
    lengths = [torch.tensor(level) for level in zip(*([len(p) for p in case["levels"]] for case in cases), strict=True)]
    numbers = torch.arange(len(cases))
    packed = {
        "lengths": lengths,
        "offset": [level.cumsum(0) for level in lengths],
        "batch": [numbers.repeat_interleave(level) for level in lengths],
    }
    return {**batch, packing: packed[packing], "batch_size": len(cases)}


def wrapped(batch, wrapping):
    for wrap in wrapping:
        batch = wrap(batch)
    return batch


WRAPPINGS = st.lists(
    st.sampled_from([lambda x: {"inner": x}, lambda x: Pair(x, "text"), lambda x: SimpleNamespace(inner=x)]), max_size=3
)


@given(counts=COUNTS, packing=st.sampled_from(["lengths", "offset", "batch"]), wrapping=WRAPPINGS)
def test_splitting_a_collated_batch_gives_the_cases_at_any_depth(counts, packing, wrapping):
    totals = [sum(level) for level in zip(*counts, strict=True)]
    assume(all(total not in {0, len(counts)} for total in totals))  # else a tensor could be read in two ways
    cases = cases_of(counts)
    inner = wrapped(collate(cases, packing), wrapping)
    found, _ = split_batch({"batch_size": len(cases), "data": inner}, {})
    for case, expected in zip(found, cases, strict=True):
        alone = collate([expected], packing)
        single = {packing: alone[packing] if packing != "lengths" else [level[0] for level in alone["lengths"]]}
        assert equal(case["data"], wrapped({**expected, **single, "batch_size": len(cases)}, wrapping))


@pytest.mark.parametrize("column", [lambda points: points[:, 0], lambda points: points[:, :1].long()])
def test_the_cloud_of_each_point_may_be_a_column_of_floats_or_a_whole_column(column):
    clouds = torch.tensor([0.0, 0, 0, 0, 1, 1, 1])
    points = torch.cat([clouds[:, None], torch.randn(7, 3)], 1)
    cases, outputs = split_batch({"points": points, "batch": column(points)}, {"scores": torch.randn(7, 2)})
    assert [len(case["points"]) for case in cases] == [len(output["scores"]) for output in outputs] == [4, 3]


@pytest.mark.parametrize("offset", [[0, 5, 12], torch.tensor([0, 5, 12]), [torch.tensor([0, 5, 12])]])
def test_an_offset_that_begins_with_0_is_an_error_where_nothing_else_says_how_many_cases_there_are(offset):
    points = torch.rand(12, 3)
    data = {"points": [points] if isinstance(offset[0], torch.Tensor) and offset[0].ndim else points, "offset": offset}
    with pytest.raises(DataError, match=r"begins with 0: the first cloud is empty.*offset\[1:\]"):
        split_batch(data, {})
    for known in ({"batch_size": 3}, {"lengths": [0, 5, 7]}):
        assert len(split_batch({"points": points, "offset": torch.tensor([0, 5, 12])} | known, {})[0]) == 3
