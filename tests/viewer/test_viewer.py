"""What the viewer offers and draws, without a browser."""

import socket
import sys

import numpy as np
import pytest

from tests.seen_runs import run_pairs, write_lines
from tests.toys import ToyEpochTrainer, settings
from vision3d_engine.commands import main
from vision3d_engine.core.errors import ConfigError, FolderError, ResultError
from vision3d_engine.report.panels import Panel
from vision3d_engine.viewer.scene import laid_out
from vision3d_engine.viewer.server import Viewer
from vision3d_engine.viewer.sources import TrainingSteps


class Painter(ToyEpochTrainer):
    """Writes one cloud a validation, and two for another tag."""

    def after_val_epoch(self, epoch, summary_dict):
        cloud = np.full((4, 3), epoch, dtype=np.float32)
        self.write_points("val/one", cloud, colors=(255, 0, 0), index=epoch)
        self.write_points("val/two", [cloud, cloud[:2]], index=epoch)


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "painted"
    Painter(settings(folder, max_epoch=3, write_files=True)).run()
    return folder


@pytest.fixture
def viewing():
    pytest.importorskip("viser")
    opened = []

    def open_viewer(folder, **options):
        opened.append(Viewer(folder, port=18200, **options))
        return opened[-1]

    yield open_viewer
    for viewer in opened:
        viewer.close()


def test_steps_of_a_training_are_found_by_tag_and_hold_all_clouds(painted):
    training = TrainingSteps(painted)
    assert training.steps == {"val/one": [1, 2, 3], "val/two": [1, 2, 3]}
    (one,) = training.panels("val/one", 2)
    assert one.title == "val/one"
    assert (one.points == 2).all()
    assert (one.colors == [255, 0, 0]).all()
    assert [(panel.title, len(panel.points)) for panel in training.panels("val/two", 3)] == [
        ("val/two 0", 4),
        ("val/two 1", 2),
    ]


def test_clouds_stand_side_by_side_in_one_scale_and_more_than_three_in_two_rows():
    def cloud(extent):
        return Panel("", np.array([[0, 0, 0], [extent, 0, 0]]) + 100.0, np.zeros((2, 3), np.uint8))

    (large, left), (small, right) = laid_out([cloud(8), cloud(4)])
    assert large.points.tolist() == [[-0.5, 0, 0], [0.5, 0, 0]]
    assert small.points.tolist() == [[-0.25, 0, 0], [0.25, 0, 0]]
    assert right[0] - left[0] > 1
    assert {tuple(np.sign(middle)) for _, middle in laid_out([cloud(1)] * 4)} == {
        (x, 0, z) for x in (-1, 1) for z in (-1, 1)
    }
    assert laid_out([]) == []
    assert laid_out([cloud(0)])[0][0].points.tolist() == [[0, 0, 0], [0, 0, 0]]


def test_the_worst_case_is_drawn_first_and_others_when_they_are_chosen(tmp_path, viewing):
    viewer = viewing(run_pairs(tmp_path / "run"))
    shown = []
    viewer._scene.show = lambda panels: shown.append([panel.title for panel in panels])
    choices = viewer.controls[0]
    assert choices.name == "room/4"
    choices.place.value = 3
    assert choices.name == "room/2"
    choices.first.value = "smallest"
    assert choices.name == "room/0"
    choices.number.value = "order of the data"
    assert choices.name == "room/0"
    assert shown[-1] == ["source and target", "truth", "estimated", "correspondences"]


def test_the_step_of_the_training_that_is_chosen_is_drawn(painted, viewing):
    viewer = viewing(painted)
    shown = []
    viewer._scene.show = lambda panels: shown.append([(panel.title, panel.points[0, 0]) for panel in panels])
    (choices,) = viewer.controls
    choices.place.value = 3
    choices.tag.value = "val/two"
    assert shown == [[("val/one", 3)], [("val/two 0", 3), ("val/two 1", 3)]]


def test_a_case_without_a_file_is_said_to_have_no_cloud(tmp_path, viewing):
    folder = run_pairs(tmp_path / "run")
    (folder / "results" / "pair" / "room_4.npz").unlink()
    (folder / "results" / "pair" / "room_3.npz").write_bytes(b"damaged")
    viewer = viewing(folder)
    assert viewer.said.startswith("There is no cloud")
    viewer.controls[0].place.value = 2
    assert "room_3.npz' cannot be read" in viewer.said
    viewer.controls[0].place.value = 3
    assert viewer.said == ""


def test_the_next_port_is_taken_where_one_is_in_use(painted, viewing):
    first, second = viewing(painted), viewing(painted)
    assert first.port != second.port
    for viewer in (first, second):
        socket.create_connection(("127.0.0.1", viewer.port), timeout=60).close()


def test_a_run_without_anything_to_see_and_a_folder_that_is_no_run_are_refused(tmp_path):
    with pytest.raises(FolderError, match="is no run"):
        Viewer(tmp_path)
    write_lines(tmp_path / "metrics.jsonl", [])
    with pytest.raises(ResultError, match=r"has nothing to look at.*save_result.*write_files"):
        Viewer(tmp_path)


def test_an_address_that_is_not_of_this_machine_is_refused(painted):
    pytest.importorskip("viser")
    with pytest.raises(ConfigError, match=r"--host 192\.0\.2\.1: .*127\.0\.0\.1"):
        Viewer(painted, host="192.0.2.1")


def test_without_viser_the_command_says_what_to_install(painted, monkeypatch):
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(SystemExit, match=r'pip install "vision3d-engine\[view\]"'):
        main(["view", str(painted)])
