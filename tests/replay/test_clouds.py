"""The clouds of a replayed batch, as the viewer finds them."""

import sys

import pytest
import torch

from vision3d_engine import collate_packed
from vision3d_engine.commands import main
from vision3d_engine.core.errors import DataError
from vision3d_engine.replay.clouds import write_clouds
from vision3d_engine.report.cases import Cases, asked_test


def packed(sizes):
    clouds = [torch.arange(3.0 * size).reshape(-1, 3) for size in sizes]
    return collate_packed(
        [{"points": cloud, "labels": torch.arange(len(cloud)), "pose": torch.eye(4)} for cloud in clouds]
    )


def test_each_sample_has_its_points_coloured_by_labels_and_by_endpoints_that_have_a_row_for_each(tmp_path):
    batch = packed([5, 7])
    endpoints = {
        "encoder/features": torch.randn(12, 8, requires_grad=True),
        "pooled": torch.randn(2, 8),
        "odd": torch.ones(3),
    }
    write_clouds(tmp_path, batch, endpoints, ["room", "hall"])
    cases = Cases(asked_test(tmp_path))
    assert [case["name"] for case in cases] == ["room", "hall"]
    panels = cases.panels("hall")
    assert [panel.title for panel in panels] == ["labels", "encoder/features"]
    assert all(torch.equal(torch.from_numpy(panel.points), batch["points"][5:]) for panel in panels)


def test_samples_without_names_are_told_by_their_place(tmp_path):
    write_clouds(tmp_path, {"cloud": torch.randn(2, 9, 3)}, {"logits": torch.randn(2, 9, 4)}, [])
    cases = Cases(asked_test(tmp_path))
    assert [case["name"] for case in cases] == ["sample 1 of the batch", "sample 2 of the batch"]
    assert [panel.title for panel in cases.panels("sample 2 of the batch")] == ["logits"]


def test_a_batch_that_cannot_be_split_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot tell the batch size"):
        write_clouds(tmp_path, {"length": 3}, {}, [])


def test_without_viser_the_command_says_what_to_install_before_anything_runs(monkeypatch):
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(SystemExit, match=r'pip install "vision3d-engine\[view\]"'):
        main(["replay", "missing.py", "--step", "1", "--view"])
