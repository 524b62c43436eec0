"""What a script shows: clouds, correspondences, images, figures, histograms and texts, read back from TensorBoard."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.toys import ToyBatchTester, ToyEpochTrainer, settings
from vision3d_engine import DataError, MetricWriter, label_colors, value_colors


@pytest.fixture
def toy(tmp_path):
    return ToyEpochTrainer(settings(tmp_path))


class Kept(MetricWriter):
    """Keeps what it is told."""

    def __init__(self):
        self.told = []

    def points(self, tag, points, colors, step):
        self.told.append((tag, points, colors, step))

    def lines(self, tag, points, colors, edges, edge_colors, step):
        self.told.append((tag, points, colors, edges, edge_colors, step))

    def histograms(self, tag, values, step):
        self.told.append((tag, values, step))


@pytest.fixture
def kept(toy):
    return toy.add_writer(Kept())


def told(toy, kept):
    toy.run()
    return kept.told


def meshes(folder):
    """Return the tensors of the mesh tab, by tag and kind."""
    events = EventAccumulator(str(folder / "events"), size_guidance={"tensors": 0}).Reload()
    return {tag: tensor_of(events.Tensors(tag)[-1]) for tag in events.Tags()["tensors"]}


def tensor_of(event):
    tensor = event.tensor_proto
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    if tensor.tensor_content:
        return np.frombuffer(tensor.tensor_content, {1: np.float32, 4: np.uint8}[tensor.dtype]).reshape(shape)
    return np.array(tensor.float_val or tensor.int_val).reshape(shape)


def seen(points):
    """What the mesh tab shows of points: z upwards on the screen, around the origin, with a diagonal of 1."""
    points = np.asarray(points, np.float64)
    turned = points[:, [0, 2, 1]] * (1, 1, -1)
    size = np.linalg.norm(np.ptp(points, axis=0))
    return (turned - (turned.max(axis=0) + turned.min(axis=0)) / 2) / size


def test_clouds_of_different_sizes_reach_the_mesh_tab_with_repeated_last_points(toy, tmp_path):
    clouds = [torch.rand(2, 3), np.zeros((0, 3)), torch.rand(3, 3, dtype=torch.float64).requires_grad_()]
    toy.write_points("clouds", clouds, [torch.zeros(2, 3), np.zeros((0, 3)), torch.ones(3, 3)], index=4)
    toy.run()
    found = meshes(tmp_path)
    first, third = seen(clouds[0]), seen(clouds[2].detach())
    expected = np.stack([np.concatenate([first, first[-1:]]), np.zeros((3, 3)), third])
    assert np.allclose(found["clouds_VERTEX"], expected, atol=1e-6)
    assert (found["clouds_COLOR"][2] == 255).all()
    assert (found["clouds_COLOR"][0] == 0).all()


def test_the_mesh_tab_shows_a_cloud_of_map_coordinates_as_finely_as_one_at_the_origin(toy, tmp_path):
    """A float32 of five million has steps of half a metre."""
    cloud = torch.rand(50, 3, dtype=torch.float64)
    toy.write_points("far", cloud + torch.tensor([5e5, 5e6, 300], dtype=torch.float64))
    toy.run()
    assert np.allclose(meshes(tmp_path)["far_VERTEX"][0], seen(cloud), atol=1e-6)


def test_the_mesh_tab_shows_a_single_point_where_it_looks(toy, tmp_path):
    toy.write_points("one", torch.tensor([[1.0, 2, 3]]))
    toy.run()
    assert meshes(tmp_path)["one_VERTEX"].tolist() == [[[0, 0, 0]]]


def test_one_cloud_a_batch_and_a_list_are_the_same_to_a_writer(toy, kept):
    points = torch.rand(1, 5, 3)
    for given in (points[0], points, [points[0]], points.numpy(), list(points.numpy())):
        toy.write_points("cloud", given, points, 7)
    for tag, clouds, colors, step in told(toy, kept):
        assert (tag, step, len(clouds), len(colors)) == ("cloud", 7, 1, 1)
        assert (clouds[0] == points[0].numpy()).all()
        assert (colors[0] == np.rint(points[0].numpy().astype(float) * 255)).all()


def test_points_are_those_of_the_call_whatever_becomes_of_the_tensor(toy, kept):
    points, colors = torch.ones(4, 3), np.full((4, 3), 9, dtype=np.uint8)
    toy.write_points("cloud", points, colors)
    points.zero_()
    colors[:] = 0
    ((_, (cloud,), (color,), _),) = told(toy, kept)
    assert cloud.tolist() == [[1.0] * 3] * 4
    assert color.tolist() == [[9] * 3] * 4


def test_labels_and_values_color_all_clouds_of_a_call_alike(toy, kept):
    points = [torch.rand(2, 3), torch.rand(3, 3)]
    toy.write_points("labels", points, labels=[torch.tensor([0, -1]), torch.tensor([1, 2, 0])])
    toy.write_points("flat", points, labels=torch.tensor([0, -1, 1, 2, 0]))
    toy.write_points("values", points, values=[torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0, 4.0])])
    toy.write_points("batch", torch.rand(2, 2, 3), values=torch.tensor([[0, 1], [2, 4]]))
    toy.write_points("palette", points[0], labels=np.array([1, 0]), palette=[(1, 2, 3), (4, 5, 6)])
    found = {tag: np.concatenate(colors) for tag, _, colors, _ in told(toy, kept)}
    assert (found["labels"] == label_colors([0, -1, 1, 2, 0])).all()
    assert (found["flat"] == found["labels"]).all()
    assert (found["values"] == value_colors(range(5))).all()
    assert (found["batch"] == value_colors([0, 1, 2, 4])).all()
    assert found["palette"].tolist() == [[4, 5, 6], [1, 2, 3]]


def test_one_color_serves_all_points_of_a_call_or_of_a_cloud(toy, kept):
    points = [torch.rand(2, 3), torch.rand(1, 3)]
    toy.write_points("all", points, (255, 0, 0))
    toy.write_points("each", points, [(255, 0, 0), np.array([0, 0, 9])])
    toy.write_points("one", points[0], torch.tensor([1.0, 0.0, 0.0]))
    found = {tag: np.concatenate(colors).tolist() for tag, _, colors, _ in told(toy, kept)}
    assert found == {"all": [[255, 0, 0]] * 3, "each": [[255, 0, 0]] * 2 + [[0, 0, 9]], "one": [[255, 0, 0]] * 2}


def test_processes_other_than_the_main_one_look_at_nothing(toy, kept, monkeypatch):
    monkeypatch.setattr(toy._session.writers, "_enabled", False)
    toy.write_points("cloud", "not looked at")
    toy.write_correspondences("pairs", None, None, None)
    toy.write_image("image", None)
    toy.write_figure("figure", None)
    toy.write_histogram("numbers", None)
    toy.write_text("text", "here")
    assert kept.told == []


def test_whether_colors_are_shares_is_decided_over_all_clouds_of_a_call(toy, kept):
    toy.write_points("clouds", torch.zeros(2, 1, 3), [torch.ones(1, 3), torch.full((1, 3), 200.0)])
    assert np.concatenate(told(toy, kept)[0][2]).tolist() == [[1] * 3, [200] * 3]


def test_points_that_are_not_finite_are_left_out_and_told_once(toy, kept):
    points = torch.rand(4, 3)
    points[1, 2], points[3, 0] = float("nan"), float("inf")
    for index in range(2):
        toy.write_points("cloud", points, labels=torch.arange(4), index=index)
    _, (cloud,), (color,), _ = told(toy, kept)[0]
    assert (cloud == points[[0, 2]].numpy()).all()
    assert (color == label_colors([0, 2])).all()
    log = Path(toy.log_file).read_text()
    assert log.count("write_points('cloud'): 2 points hold NaN or infinity and are left out") == 1


@pytest.mark.parametrize(
    ("points", "options", "said"),
    [
        ([], {}, "points: got an empty list, expected at least one cloud"),
        (torch.zeros(5, 2), {}, r"points: got a tensor of shape \(5, 2\), expected one cloud \(N, 3\)"),
        (
            [torch.zeros(5, 3), torch.zeros(5, 4)],
            {},
            r"points\[1\]: got a tensor of shape \(5, 4\) in float32, expected",
        ),
        (torch.zeros(5, 3, dtype=torch.bool), {}, r"points\[0\]: got .* in bool, expected numbers of shape \(N, 3\)"),
        (torch.zeros(5, 3), {"colors": torch.zeros(4, 3)}, r"colors: got .*\(4, 3\).* expected \(5, 3\): one for each"),
        (torch.zeros(5, 3), {"labels": torch.zeros(4, dtype=torch.int64)}, r"labels: got .*\(4,\).* expected \(5\)"),
        (torch.zeros(5, 3), {"labels": torch.zeros(5)}, "labels: got .* expected whole numbers"),
        (
            [torch.zeros(5, 3)] * 2,
            {"values": [torch.zeros(5)]},
            "values: got a list of 1, expected one entry for each of 2",
        ),
        ([torch.zeros(5, 3)] * 2, {"values": [torch.zeros(5), torch.zeros(4)]}, r"values\[1\]: got a? ?.*\(4,\)"),
        (
            torch.zeros(5, 3),
            {"colors": (1, 2, 3), "values": torch.zeros(5)},
            "got colors, values, expected one of them",
        ),
        (torch.zeros(5, 3), {"palette": [(1, 2, 3)]}, "got a palette without labels"),
    ],
)
def test_wrong_clouds_are_told_with_the_call_what_was_got_and_what_is_expected(toy, points, options, said):
    with pytest.raises(DataError, match=said) as caught:
        toy.write_points("val/cloud", points, **options)
    assert str(caught.value).startswith("write_points('val/cloud'): ")


# ------------------------------------------------------------------------------------------- correspondences


def test_correspondences_are_green_and_red_lines_between_a_grey_and_a_blue_cloud_beside_it(toy, kept):
    source, target = torch.tensor([[0.0, 0, 0], [1, 0, 0]]), torch.tensor([[5.0, 5, 5], [6, 5, 5], [7, 5, 5]])
    pairs = torch.tensor([[0, 2], [1, 0]])
    toy.write_correspondences("pairs", source, target, pairs, torch.tensor([True, False]), 3)
    tag, points, colors, edges, edge_colors, step = told(toy, kept)[0]
    assert (tag, step) == ("pairs", 3)
    assert points.tolist() == [[0, 0, 0], [1, 0, 0], *([1.2 + x, 0, 0] for x in np.float32([0, 1, 2]).tolist())] or (
        np.allclose(points[2:], [[1.2, 0, 0], [2.2, 0, 0], [3.2, 0, 0]])
    )
    assert colors.tolist() == [[128] * 3] * 2 + [[60, 110, 200]] * 3
    assert edges.tolist() == [[0, 4], [1, 2]]
    assert edge_colors.tolist() == [[40, 170, 70], [220, 50, 40]]


def test_distances_up_to_the_threshold_are_inliers_and_without_them_lines_are_orange(toy, kept):
    cloud, pairs = torch.rand(3, 3), torch.tensor([[0, 0], [1, 1], [2, 2]])
    near = {"distances": torch.tensor([0.1, 0.2, 0.3]), "threshold": 0.2000001}
    toy.write_correspondences("by distance", cloud, cloud, pairs, **near, offset=(0, 0, 1))
    toy.write_correspondences("unknown", cloud, cloud, pairs)
    (_, points, _, _, marked, _), (_, _, _, _, plain, _) = told(toy, kept)
    assert marked.tolist() == [[40, 170, 70]] * 2 + [[220, 50, 40]]
    assert plain.tolist() == [[240, 150, 30]] * 3
    assert np.allclose(points[3:] - points[:3], [0, 0, 1])


def test_correspondences_of_points_that_are_not_finite_are_left_out_and_the_others_stay(toy, kept):
    source, target = torch.eye(3), torch.eye(3)
    source[1, 1] = float("nan")
    pairs = torch.tensor([[0, 0], [1, 1], [2, 2]])
    toy.write_correspondences("pairs", source, target, pairs, torch.tensor([True, True, False]), offset=torch.zeros(3))
    _, points, _, edges, colors, _ = told(toy, kept)[0]
    assert points[edges].tolist() == [[[1, 0, 0], [1, 0, 0]], [[0, 0, 1], [0, 0, 1]]]
    assert colors.tolist() == [[40, 170, 70], [220, 50, 40]]


def test_in_the_mesh_tab_lines_are_rows_of_points_from_end_to_end(toy, tmp_path):
    source, target = torch.zeros(1, 3), torch.zeros(1, 3)
    toy.write_correspondences("pairs", source, target, torch.tensor([[0, 0]]), torch.tensor([True]), offset=(10, 0, 0))
    toy.run()
    found = meshes(tmp_path)
    points, colors = found["pairs_VERTEX"][0], found["pairs_COLOR"][0]
    dots = points[2:]
    assert (dots[0] == points[0]).all()
    assert (dots[-1] == points[1]).all()
    assert 0 < np.diff(dots[:, 0]).min() <= np.diff(dots[:, 0]).max() <= 0.01
    assert (colors[2:] == [40, 170, 70]).all()


def test_many_points_and_lines_are_thinned_for_the_mesh_tab(toy, kept, tmp_path):
    cloud, rows = torch.rand(50_000, 3), torch.arange(2000)
    toy.write_points("cloud", cloud)
    toy.write_correspondences("pairs", cloud, cloud, torch.stack([rows, rows], 1), offset=torch.zeros(3))
    kept_points, kept_lines = told(toy, kept)
    found = meshes(tmp_path)
    assert 10_000 < found["cloud_VERTEX"].shape[1] <= 20_000
    assert found["pairs_VERTEX"].shape[1] <= 20_000 + 500
    assert len(kept_points[1][0]) == 50_000
    assert len(kept_lines[3]) == 2000


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"correspondences": torch.tensor([[0, 3]])},
            "got rows 3 to 3 of the target, expected 0 to 2: it has 3 points",
        ),
        ({"correspondences": torch.tensor([[-1, 0]])}, "got rows -1 to -1 of the source"),
        ({"correspondences": torch.zeros(1, 2)}, r"got a tensor of shape \(1, 2\) in float32, expected whole numbers"),
        ({"correspondences": torch.tensor([0, 1])}, r"expected whole numbers of shape \(K, 2\)"),
        ({"is_inlier": torch.tensor([0.1])}, r"is_inlier: .* expected booleans of shape \(1,\).* give distances="),
        ({"distances": torch.tensor([0.1])}, "got distances, expected is_inlier, or distances with a threshold"),
        ({"target_points": torch.zeros(3)}, r"target_points: got a tensor of shape \(3,\)"),
        ({"offset": 2.0}, "offset: got 2.0 .* expected three finite numbers"),
    ],
)
def test_wrong_correspondences_are_told_with_the_call_what_was_got_and_what_is_expected(toy, changed, said):
    given = {"source_points": torch.zeros(3, 3), "target_points": torch.zeros(3, 3)}
    with pytest.raises(DataError, match=said) as caught:
        toy.write_correspondences("x", **{**given, "correspondences": torch.tensor([[0, 0]]), **changed})
    assert str(caught.value).startswith("write_correspondences('x'): ")


# ------------------------------------------------------------------------------------------- pictures, numbers, texts


def pixels(folder, tag):
    import io

    from PIL import Image

    events = EventAccumulator(str(folder / "events")).Reload()
    return np.array(Image.open(io.BytesIO(events.Images(tag)[-1].encoded_image_string)))


@pytest.mark.parametrize("layout", ["HW", "CHW", "HWC", "NCHW", "NHWC"])
def test_an_image_of_any_layout_reaches_tensorboard_pixel_by_pixel(toy, tmp_path, layout):
    expected = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)
    if layout == "HW":
        given, expected = expected[..., 0], np.repeat(expected[..., :1], 3, axis=2)
    else:
        given = expected.transpose(["HWC".index(axis) for axis in layout if axis != "N"])
        given = given[np.newaxis] if "N" in layout else given
    toy.write_image("picture", given)
    toy.write_image("tensor", torch.from_numpy(given.copy()).double() / 255, 2, layout)
    toy.run()
    for tag in ("picture", "tensor"):
        found = pixels(tmp_path, tag)
        assert (found == (expected if found.ndim == 3 else expected[..., 0])).all()


@pytest.mark.parametrize(
    ("image", "options", "said"),
    [
        (
            torch.zeros(3, 8, 3),
            {},
            r"got .*\(3, 8, 3\).* which may be read as CHW or HWC. Say the axes by dataformats=",
        ),
        (torch.zeros(5, 8, 6), {}, r"got .*\(5, 8, 6\) in float32, expected one of HW, CHW, HWC"),
        (torch.zeros(3, 8, 6), {"dataformats": "HWC"}, "expected dataformats 'HWC'"),
        (torch.zeros(8, 6, dtype=torch.int64), {}, "in int64, expected uint8"),
    ],
)
def test_an_image_that_cannot_be_read_in_one_way_is_told(toy, image, options, said):
    with pytest.raises(DataError, match=said) as caught:
        toy.write_image("x", image, **options)
    assert str(caught.value).startswith("write_image('x'): ")


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (torch.full((8, 6), 200.0), "got floats from 200 to 200, expected 0 to 1: they look like 0 to 255"),
        (torch.tensor([[-2.1, 2.6]]), "got floats from -2.1 to 2.6, expected 0 to 1: undo a normalisation"),
        (torch.tensor([[0.5, float("nan")]]), "got NaN or infinity in 1 numbers, expected floats from 0 to 1"),
        (torch.tensor([[0.5, float("inf")]]), "got NaN or infinity in 1 numbers"),
    ],
)
def test_floats_that_are_no_shares_of_white_are_told_with_their_range(toy, image, said):
    with pytest.raises(DataError, match=said) as caught:
        toy.write_image("x", image)
    assert str(caught.value).startswith("write_image('x'): ")


def test_floats_that_rounding_has_put_out_of_their_range_are_cut(toy, tmp_path):
    toy.write_image("x", torch.tensor([[-1e-6, 1 + 1e-6]]))
    toy.run()
    assert pixels(tmp_path, "x")[..., 0].tolist() == [[0, 255]]


def test_an_empty_cloud_alone_is_written_as_one_beside_others(toy, kept):
    toy.write_points("one", torch.rand(5, 3)[:0])
    toy.write_points("labelled", torch.rand(0, 3), labels=torch.zeros(0, dtype=torch.int64))
    assert [[cloud.shape for cloud in points] for _, points, _, _ in told(toy, kept)] == [[(0, 3)], [(0, 3)]]


def test_a_histogram_of_nothing_is_told_once(toy, kept):
    for index in range(2):
        toy.write_histogram("weights", torch.zeros(0), index)
    assert told(toy, kept) == []
    assert Path(toy.log_file).read_text().count("write_histogram('weights'): there is no number to count") == 1


@pytest.mark.parametrize("name", ["points", "image", "figure", "histogram", "text"])
def test_every_call_refuses_a_tag_that_is_no_text_and_a_step_that_is_no_whole_number(toy, name):
    write = getattr(toy, f"write_{name}")
    with pytest.raises(DataError, match=rf"write_{name}: got the tag a tensor of shape \(8, 3\), expected a text"):
        write(torch.zeros(8, 3), "tag")
    with pytest.raises(DataError, match=rf"write_{name}\('x'\): index: got 1.5 \(float\), expected a whole number"):
        write("x", torch.zeros(8, 3), index=1.5)


def test_figures_histograms_and_texts_reach_tensorboard(toy, kept, tmp_path):
    from matplotlib.figure import Figure

    toy.write_figure("figure", Figure(figsize=(1, 1)), 1)
    toy.write_histogram("weights", torch.tensor([1.0, float("nan"), 2.0], requires_grad=True), 1)
    toy.write_histogram("nothing", torch.tensor([float("nan")]))
    toy.write_text("note", "a text", 1)
    toy.run()
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert pixels(tmp_path, "figure").shape == (100, 100, 3)
    assert (events.Histograms("weights")[0].histogram_value.num, events.Tags()["histograms"]) == (2, ["weights"])
    assert events.Tensors("note")[0].tensor_proto.string_val == [b"a text"]
    assert "write_histogram('weights'): 1 numbers hold NaN or infinity" in Path(toy.log_file).read_text()


def test_what_is_no_figure_and_no_numbers_is_told(toy):
    with pytest.raises(DataError, match=r"write_figure\('x'\): got None, expected a figure of matplotlib"):
        toy.write_figure("x", None)
    with pytest.raises(DataError, match=r"write_figure\('x'\): got the module matplotlib.pyplot, expected a figure"):
        toy.write_figure("x", importlib.import_module("matplotlib.pyplot"))
    with pytest.raises(DataError, match=r"write_histogram\('x'\): values: got .* expected real numbers"):
        toy.write_histogram("x", ["a"])


def test_a_tester_shows_the_same(tmp_path):
    toy = ToyBatchTester(settings(tmp_path))
    toy.write_points("cloud", torch.zeros(2, 3), labels=torch.tensor([0, 1]))
    toy._session.writers.close()
    assert (meshes(tmp_path)["cloud_COLOR"][0] == label_colors([0, 1])).all()
