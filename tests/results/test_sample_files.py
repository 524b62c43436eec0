"""The files of samples: what they hold, what they are called, and that they repeat themselves."""

import numpy as np
import plyfile
import pytest
import torch

from vision3d_engine.core.errors import ResultError
from vision3d_engine.results.sample_files import (
    check_cloud,
    read_sample,
    safe_name,
    to_arrays,
    write_npz,
    write_ply,
)
from vision3d_engine.writers.files import FilesWriter, listed_files


def test_an_npz_holds_tensors_arrays_numbers_texts_and_nested_dicts(tmp_path):
    values = {
        "labels": torch.tensor([1, 2]),
        "scores": torch.ones(2, requires_grad=True),
        "half": torch.tensor([0.5], dtype=torch.bfloat16),
        "file": np.arange(3),
        "pose": {"rre": 0.25, "method": "ransac"},
    }
    write_npz(tmp_path / "a.npz", to_arrays(values))
    found = np.load(tmp_path / "a.npz")
    assert set(found) == {"labels", "scores", "half", "file", "pose/rre", "pose/method"}
    assert found["labels"].dtype == np.int64
    assert found["half"].tolist() == [0.5]
    assert (found["pose/rre"], found["pose/method"]) == (0.25, "ransac")


def test_the_same_arrays_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_npz(tmp_path / name, to_arrays({"x": torch.arange(5)}))
        write_ply(tmp_path / f"{name}.ply", to_arrays({"points": torch.ones(2, 3)}))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a.ply").read_bytes() == (tmp_path / "b.ply").read_bytes()


def test_a_tensor_that_is_changed_later_is_saved_as_it_was():
    tensor = torch.zeros(3)
    arrays = to_arrays({"x": tensor})
    tensor += 1
    assert arrays["x"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("value", [object(), [torch.ones(2), torch.ones(3)], None, [np.ones(2), np.ones(3)]])
def test_what_is_no_array_is_refused_by_its_name(value):
    with pytest.raises(ResultError, match=r"'odd' is .*expected a tensor"):
        to_arrays({"odd": value})


def test_a_cloud_is_a_ply_with_colors_normals_and_further_columns(tmp_path):
    arrays = to_arrays(
        {
            "points": torch.arange(6).reshape(2, 3) / 2,
            "colors": torch.tensor([[0.0, 0.5, 1.0]] * 2),
            "normals": torch.ones(2, 3),
            "label": torch.tensor([3, 4]),
            "is_edge": torch.tensor([True, False]),
            "scores": torch.ones(2, 2),
        }
    )
    check_cloud(arrays)
    write_ply(tmp_path / "a.ply", arrays)
    vertices = plyfile.PlyData.read(tmp_path / "a.ply")["vertex"]
    names = "x y z red green blue nx ny nz label is_edge scores_0 scores_1"
    assert [each.name for each in vertices.properties] == names.split()
    assert vertices["y"].tolist() == [0.5, 2.0]
    assert [vertices[name][0] for name in ("red", "green", "blue")] == [0, 128, 255]
    assert vertices["label"].tolist() == [3, 4]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"labels": torch.ones(3)}, r"needs 'points' of the shape \(N, 3\); got labels \(3,\)"),
        ({"points": torch.ones(4, 2)}, r"needs 'points'"),
        ({"points": torch.ones(4, 3), "pose": torch.eye(3)}, r"'pose' is float32 \(3, 3\); expected .* 4 points"),
        ({"points": torch.ones(4, 3), "name": "a"}, r"'name' is <U1 \(\)"),
    ],
)
def test_what_is_no_cloud_is_refused(values, message):
    with pytest.raises(ResultError, match=message):
        check_cloud(to_arrays(values))


def test_a_name_becomes_one_that_a_file_may_have():
    assert safe_name("7-scenes/head 1.png") == "7-scenes_head_1.png"
    assert safe_name("räume.β") == "räume.β"
    assert safe_name("../../etc") == "_.._etc"
    assert safe_name("") == safe_name("..") == "_"
    long = [safe_name("a" * 500 + end) for end in "xy"]
    assert long[0] != long[1]
    assert max(map(len, long)) < 200


def test_what_was_written_is_read_again(tmp_path):
    values = {
        "points": torch.rand(4, 3),
        "normals": torch.rand(4, 3),
        "colors": torch.tensor([[255, 0, 7]] * 4, dtype=torch.uint8),
        "scores": torch.rand(4, 2),
        "label_1": torch.arange(4, dtype=torch.int32),
    }
    arrays = to_arrays(values)
    for path, write in ((tmp_path / "a.ply", write_ply), (tmp_path / "a.npz", write_npz)):
        write(path, arrays)
        found = read_sample(path)
        for key, array in arrays.items():
            np.testing.assert_array_equal(found.pop(key), array)
        assert found == {}


def test_lines_of_a_run_are_read_with_their_colours_and_listed_with_tag_and_step(tmp_path):
    writer = FilesWriter(tmp_path)
    points, colors = np.eye(3, dtype=np.float32), np.full((3, 3), 9, np.uint8)
    writer.lines("val/pairs", points, colors, np.array([[0, 2]]), np.array([[1, 2, 3]], np.uint8), step=5)
    writer.close()
    ((tag, step, path),) = listed_files(tmp_path)
    assert (tag, step) == ("val/pairs", 5)
    found = read_sample(path)
    assert (found["points"] == points).all()
    assert (found["colors"] == colors).all()
    assert found["edges"].tolist() == [[0, 2]]
    assert found["edge_colors"].tolist() == [[1, 2, 3]]
    assert list(listed_files(tmp_path / "missing")) == []


@pytest.mark.parametrize("name", ["a.npz", "a.ply"])
def test_a_file_that_cannot_be_read_is_an_error_that_names_it(tmp_path, name):
    (tmp_path / name).write_bytes(b"ply\nformat nonsense")
    with pytest.raises(ResultError, match=rf"{name}' cannot be read: .*--overwrite"):
        read_sample(tmp_path / name)
