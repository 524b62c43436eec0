"""What is seen of the arrays of a case."""

import numpy as np
import pytest

from vision3d_engine.core.colors import BLUE, GREEN, ORANGE, RED, label_colors
from vision3d_engine.core.errors import DataError
from vision3d_engine.report.panels import panels_of, thinned

POINTS = np.random.default_rng(0).random((50, 3)).astype(np.float32)


def titles(arrays):
    return [panel.title for panel in panels_of(arrays)]


def test_prediction_and_truth_are_beside_each_other_in_the_same_colours():
    labels = np.arange(50) % 7
    label, prediction, score = panels_of(
        {"points": POINTS, "label": labels, "prediction": labels[::-1], "score": POINTS[:, 0], "logits": POINTS[:, :2]}
    )
    assert [label.title, prediction.title, score.title] == ["label", "prediction", "score"]
    assert (label.colors == label_colors(labels)).all()
    assert (prediction.colors == label.colors[::-1]).all()
    assert (score.points == POINTS).all()


def test_clouds_of_other_sizes_have_pictures_of_their_own_and_normals_are_no_cloud():
    other = POINTS[:20]
    assert titles({"points": POINTS, "normals": POINTS, "completed": other, "colors": POINTS}) == [
        "colors",
        "completed",
    ]
    assert titles({"labels": np.zeros(3, int), "pose": np.eye(4)}) == []


def test_a_pair_is_shown_as_it_is_moved_by_each_transform_and_with_its_correspondences():
    shift = np.eye(4)
    shift[0, 3] = 5
    pairs = np.array([[0, 0], [1, 3]])
    arrays = {"source": POINTS, "target": POINTS[:30], "estimated": shift, "correspondences": pairs}
    given, moved, lines = panels_of(arrays | {"is_inlier": np.array([True, False])})
    assert (given.colors == np.repeat([ORANGE, BLUE], [50, 30], axis=0)).all()
    np.testing.assert_allclose(moved.points, np.concatenate([POINTS + shift[:3, 3], POINTS[:30]]), rtol=1e-6)
    assert lines.edges.tolist() == [[0, 50], [1, 53]]
    assert (lines.edge_colors == [GREEN, RED]).all()


def test_points_that_are_not_finite_are_left_out_with_their_lines():
    broken = POINTS.copy()
    broken[1] = np.nan
    (panel,) = panels_of({"points": broken, "edges": np.array([[0, 1], [0, 2]]), "edge_colors": np.array([RED, GREEN])})
    assert len(panel.points) == 49
    assert panel.edges.tolist() == [[0, 1]]
    assert (panel.edge_colors == [GREEN]).all()
    assert titles({"points": np.full((4, 3), np.nan)}) == []


def test_at_most_six_pictures_are_made_of_a_case():
    assert len(titles({"points": POINTS, **{f"head{place}": np.zeros(50) for place in range(9)}})) == 6


def test_correspondences_that_are_none_are_an_error_that_names_them():
    with pytest.raises(DataError, match="correspondences: got"):
        panels_of({"source": POINTS, "target": POINTS, "correspondences": np.array([[0, 99]])})


def test_a_thinned_cloud_keeps_the_ends_of_its_lines():
    (panel,) = panels_of({"points": POINTS, "edges": np.array([[49, 3]])})
    few = thinned(panel, 10)
    assert 10 <= len(few.points) <= 12
    assert (few.points[few.edges[0]] == POINTS[[49, 3]]).all()
    assert thinned(panel, 50) is panel
