"""The segmentation example: its geometry, and shortened runs of its two scripts as processes."""

import json
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from plyfile import PlyData

from tests.patience import skip_if_ignored
from tests.stories.launching import outputs_of, start, start_ranks
from vision3d_engine import label_colors
from vision3d_engine.core.compare import differences

EXAMPLE = Path(__file__).parents[2] / "examples" / "segmentation"
SHORT = ["--data.num_train", 16, "--data.num_val", 4, "--data.num_test", 4, "--data.batch_size", 2]
SHORT += ["--data.num_scans", 1, "--data.scan_points", 6000]
SHORT += ["--trainer.max_epoch", 2, "--log_steps", 1]


@pytest.fixture(autouse=True)
def _example_on_path(monkeypatch):
    """Import the scripts' modules as the scripts do, and forget them afterwards."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    yield
    for name in ("data", "model", "picture"):
        sys.modules.pop(name, None)


def started(script, folder, *words):
    return start(EXAMPLE / script, *SHORT, "--exp.output_dir", folder, *words)


def ended_well(*processes):
    outputs = outputs_of(processes)
    assert [code for code, _, _ in outputs] == [0] * len(processes), [error for _, _, error in outputs]
    return outputs[0][2]


def rows(folder, phase):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row | row["values"] for row in map(json.loads, lines) if row["phase"] == phase]


def weights(folder):
    return torch.load(folder / "checkpoints" / "checkpoint.pth", weights_only=True)["model"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight") / "run"
    ended_well(started("train.py", folder))
    return folder


def test_it_trains_and_finds_its_best_model_by_the_mean_iou(straight):
    losses = [row["loss"] for row in rows(straight, "train")]
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    for name in ("spacious", "crowded"):
        assert [0 < row[f"{name}/seg/mIoU"] < 1 for row in rows(straight, "val")] == [True, True]
    assert (straight / "checkpoints" / "best_crowded_seg_mIoU.pth").exists()


def test_it_ends_early_when_the_mean_iou_no_longer_improves(tmp_path):
    patience = ["--trainer.early_stopping_min_delta", 1, "--trainer.early_stopping_patience", 1]
    ended_well(started("train.py", tmp_path / "run", "--trainer.max_epoch", 5, *patience))
    assert len(rows(tmp_path / "run", "val")) == 2


def test_the_head_has_a_rate_of_its_own_with_the_curve_of_all(straight):
    for row in rows(straight, "train"):
        assert row["lr/head"] == pytest.approx(2 * row["lr"], rel=1e-3)


def test_the_test_script_tells_the_iou_of_each_class_and_draws(straight):
    said = ended_well(started("test.py", straight))
    assert all(
        re.search(rf"^    {name} +[01]\.\d\d\d$", said, re.MULTILINE)
        for name in ("floor", "wall", "table", "chair", "cabinet", "lamp")
    )
    assert (straight / "segmentation.png").stat().st_size > 0


def test_a_scan_is_segmented_in_thinned_pieces_and_judged_whole(straight):
    said = ended_well(started("scans.py", straight, "--overwrite"))
    assert re.search(r"\[Test\] accuracy: 0\.\d+, seg/mIoU: 0\.\d+", said)
    assert "test ended: 1 cases" in said
    assert all(re.search(rf"^    {name} +[01]\.\d\d\d$", said, re.MULTILINE) for name in ("floor", "lamp"))


def test_what_is_said_of_a_scan_lies_beside_the_truth_as_clouds_coloured_by_class(straight):
    ended_well(started("scans.py", straight, "--overwrite"))
    said, truth = (
        PlyData.read(straight / "results-scans" / kind / "scan-0.ply")["vertex"] for kind in ("prediction", "truth")
    )
    assert len(said) == len(truth) == 6000
    assert np.array_equal(said["x"], truth["x"])
    for cloud in (said, truth):
        found = np.stack([cloud[name] for name in ("red", "green", "blue")], axis=1)
        assert np.array_equal(found, label_colors(cloud["label"]))
    (row,) = map(json.loads, (straight / "results-scans.jsonl").read_text().splitlines())
    assert row["name"] == "scan-0"
    assert row["values"]["accuracy"] == pytest.approx((said["label"] == truth["label"]).mean())


def test_stopped_by_ctrl_c_it_resumes_to_the_same_bits(straight, tmp_path):
    skip_if_ignored(signal.SIGINT)
    process = started("train.py", tmp_path / "run")
    assert any("iter: 2/" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    assert outputs_of([process])[0][0] == 130
    ended_well(started("train.py", tmp_path / "run", "--resume"))
    assert list(differences(weights(straight), weights(tmp_path / "run"))) == []


def test_two_processes_test_all_rooms_together_like_one(straight):
    alone = ended_well(started("test.py", straight))
    together = ended_well(*start_ranks(EXAMPLE / "test.py", *SHORT, "--exp.output_dir", straight))
    assert re.findall(r"seg/\w+: \S+", together) == re.findall(r"seg/\w+: \S+", alone) != []


def test_two_processes_train_and_validate_all_rooms_together(tmp_path):
    words = [*SHORT, "--exp.output_dir", tmp_path / "run", "--trainer.max_epoch", 1]
    ended_well(*start_ranks(EXAMPLE / "train.py", *words))
    (row,) = rows(tmp_path / "run", "val")
    assert 0 < row["spacious/seg/mIoU"] < 1
    assert 0 < row["crowded/seg/mIoU"] < 1


@pytest.mark.slow
def test_at_its_full_length_it_segments(tmp_path):
    ended_well(start(EXAMPLE / "train.py", "--exp.output_dir", tmp_path / "run"))
    assert rows(tmp_path / "run", "val")[-1]["spacious/seg/mIoU"] > 0.75


def test_points_lie_on_the_faces_of_their_box():
    from data import Piece, sample_piece

    sizes, place = np.array([2.0, 1.0, 0.5]), np.array([3.0, 4.0])
    piece = Piece(0, np.concatenate([sizes, [0, 0, 0]])[None], np.pi / 2, place)
    points = sample_piece(piece, 500, np.random.default_rng(0))
    points[:, :2] -= place
    turned_back = np.abs(points[:, [1, 0, 2]])
    assert (turned_back <= sizes / 2 + 1e-9).all()
    assert np.isclose(turned_back, sizes / 2).any(axis=1).all()


def test_a_room_is_the_same_each_time_and_has_a_class_for_each_point():
    from data import CLASSES, RoomDataset

    rooms = RoomDataset(8, seed=3)
    assert torch.equal(rooms[5]["points"], RoomDataset(8, seed=3)[5]["points"])
    assert {len(room["points"]) for room in map(rooms.__getitem__, range(8))} != {len(rooms[0]["points"])}
    for room in map(rooms.__getitem__, range(8)):
        assert 500 <= len(room["points"]) == len(room["labels"]) <= 4000
        assert 0 <= room["labels"].min() <= room["labels"].max() < len(CLASSES)


def test_a_packed_room_has_the_logits_that_it_has_alone():
    from data import RoomDataset, pack
    from model import SegmentationModel

    torch.manual_seed(0)
    rooms, model = [RoomDataset(3, seed=0)[index] for index in range(3)], SegmentationModel(6).eval()
    batch = pack(rooms)
    together = model(batch["points"], batch["lengths"]).split(batch["lengths"])
    for room, logits in zip(rooms, together, strict=True):
        assert torch.allclose(model(room["points"], [len(room["points"])]), logits, atol=1e-4)
