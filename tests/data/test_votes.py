"""Other views of a fragment."""

import pytest
import torch

from vision3d_engine import DataError
from vision3d_engine.data.votes import flipped, scaled, turned

FRAGMENT = {"points": torch.tensor([[1.0, 0, 5], [0, 2, 6]]), "index": torch.tensor([3, 4])}


def test_a_turn_is_anticlockwise_about_z_and_leaves_the_fragment_itself_as_it_is():
    view = turned(90)(FRAGMENT)
    assert torch.allclose(view["points"], torch.tensor([[0.0, 1, 5], [-2, 0, 6]]), atol=1e-6)
    assert view["index"] is FRAGMENT["index"]
    assert FRAGMENT["points"][0].tolist() == [1, 0, 5]


def test_a_flip_changes_one_sign_and_a_scale_all_lengths():
    assert flipped(1)(FRAGMENT)["points"].tolist() == [[1, 0, 5], [0, -2, 6]]
    assert scaled(0.5)(FRAGMENT)["points"].tolist() == [[0.5, 0, 2.5], [0, 1, 3]]


def test_normals_turn_with_the_points_when_named():
    fragment = FRAGMENT | {"normals": torch.tensor([[0.0, 1, 0], [0, 0, 1]], dtype=torch.float64)}
    view = turned(180, keys=("points", "normals"))(fragment)
    assert torch.allclose(view["normals"], torch.tensor([[0.0, -1, 0], [0, 0, 1]], dtype=torch.float64), atol=1e-12)


def test_an_entry_that_has_no_rows_of_three_is_refused():
    with pytest.raises(DataError, match=r"fragment\['coord'\]: expected a tensor of floats \(n, 3\).* keys="):
        turned(90, keys=("coord",))(FRAGMENT)
