"""The registration example: its geometry, and a shortened run of its two scripts as processes."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.stories.forking import run_forked
from vision3d_engine.metrics.registration import moved, rotation_error_deg
from vision3d_engine.results.comparison import compare

EXAMPLE = Path(__file__).parents[2] / "examples" / "registration"


@pytest.fixture(autouse=True)
def _example_on_path(monkeypatch):
    """Import the scripts' modules as the scripts do, and forget them afterwards."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    yield
    for name in ("data", "model", "picture", "test"):
        sys.modules.pop(name, None)


def test_a_pixel_becomes_the_metric_point_of_its_calibration():
    from data import points_from_disparity

    disparity = np.full((300, 400), np.inf)
    disparity[254, 311] = 100.0 - 31.086
    (point,) = points_from_disparity(disparity)
    depth = 0.193001 * 994.978 / 100.0
    assert point == pytest.approx([(311 - 311.193) / 994.978 * depth, (254 - 254.877) / 994.978 * depth, depth])


def test_the_scan_is_a_room_of_metres():
    from data import load_scan

    scan = load_scan()
    assert len(scan) > 300_000
    assert 1.0 < np.median(scan[:, 2]) < 6.0


def test_a_motion_is_recovered_from_perfect_matches():
    from model import apply_motion, weighted_rigid_motion

    torch.manual_seed(0)
    source = torch.randn(4, 50, 3)
    rotation = torch.linalg.qr(torch.randn(4, 3, 3)).Q
    rotation = rotation * torch.det(rotation)[:, None, None]
    translation = torch.randn(4, 3)
    target = apply_motion(source, rotation, translation)
    found = weighted_rigid_motion(source, target, torch.full((4, 50), 1 / 50))
    assert rotation_error_deg(found[0], rotation).max() < 1e-2
    assert torch.allclose(found[1], translation, atol=1e-4)


def test_the_motion_of_a_pair_brings_its_source_onto_its_target():
    from data import make_pair

    points = np.random.default_rng(0).normal(size=(400, 3))
    points[1::2] = points[::2]  # both clouds from the same points
    pair = make_pair(points, np.random.default_rng(1), 45.0)
    moved = pair["source"] @ pair["rotation"].T + pair["translation"]
    nearest = torch.cdist(moved, pair["target"]).min(dim=1).values
    assert nearest.quantile(0.5) < 0.02
    assert pair["source"].shape == pair["target"].shape == (160, 3)


def test_the_scripts_train_and_test_in_a_shortened_form(tmp_path):
    short = ["--data.num_train", "16", "--data.num_val", "8", "--data.num_test", "4", "--data.num_points", "100"]
    short += ["--trainer.num_iters_per_epoch", "4", "--trainer.max_epoch", "1"]
    for script, *words in (["train.py"], ["test.py"], ["test.py", "--data.test_set", "familiar"]):
        done = run_forked([EXAMPLE / script, *short, *words], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        if script == "test.py":
            assert re.search(r"pairs/RR: \d.*worst cases, largest RRE first", done.stderr, re.DOTALL)
    run = tmp_path / "runs" / "registration"
    for test, names in {"scan": "left-000 middle-001 right-002 left-003", "familiar": "shape-000 terrain-001"}.items():
        rows = [json.loads(line) for line in (run / f"results-{test}.jsonl").read_text().splitlines()]
        assert [row["name"] for row in rows][: len(names.split())] == names.split()
        for name in ("typical.png", "worst.png", f"transforms/{rows[-1]['name']}.npz"):
            assert (run / f"results-{test}" / name).stat().st_size > 0
    table = compare([run], per="^(.*)-")
    assert re.findall(r"^\w+", table, re.MULTILINE) == ["shape", "terrain", "left", "middle", "right"]


def test_a_transform_moves_points_as_its_motion_does():
    from test import as_transform

    motion = {"rotation": torch.linalg.qr(torch.randn(2, 3, 3)).Q, "translation": torch.randn(2, 3)}
    points = torch.randn(2, 9, 3)
    expected = points @ motion["rotation"].transpose(1, 2) + motion["translation"][:, None]
    assert torch.allclose(moved(points, as_transform(motion)), expected.double(), atol=1e-5)


def test_the_quick_maximum_over_neighbours_equals_the_plain_one_with_its_gradient():
    from model import max_over_neighbours, nearest_neighbours

    points = torch.randn(2, 20, 3, dtype=torch.float64)
    indices = nearest_neighbours(points, 5)
    features = torch.randn(2, 20, 4, dtype=torch.float64, requires_grad=True)
    plain = torch.stack([features[b][indices[b]].amax(dim=1) for b in range(2)])
    weights = torch.randn_like(plain)
    (expected,) = torch.autograd.grad((plain * weights).sum(), features)
    quick = max_over_neighbours(features, indices)
    (found,) = torch.autograd.grad((quick * weights).sum(), features)
    assert torch.equal(quick, plain)
    assert torch.allclose(found, expected, atol=1e-12)
