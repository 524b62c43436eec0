"""Whole scenes on several processes, of the size that scans have, and what they take."""

import json
import os
from pathlib import Path

import pytest
import torch

from tests.stories.launching import results_of, start, start_ranks
from tests.stories.scene_script import Rooms, RoomTester, network
from vision3d_engine.data.fragments import overlapping_blocks, spheres, take_points, voxel_picks, voxel_subsample

SCRIPT = Path(__file__).parent / "scene_script.py"
NUM_POINTS = 200_000


@pytest.fixture
def folder(tmp_path):
    torch.save({"model": network().state_dict()}, tmp_path / "rooms.pth")
    return tmp_path


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_each_process_tests_scenes_of_its_own_and_all_have_the_numbers_of_one(folder, size):
    (alone,) = map(json.loads, results_of([start(SCRIPT, folder, 5, 2000)]))
    found = list(map(json.loads, results_of(start_ranks(SCRIPT, folder, 5, 2000, size=size))))
    names = [f"room {index}" for index in range(5)]
    assert alone["names"] == names
    assert sorted(each["names"] for each in found) == [names[rank::size] for rank in range(size)]
    together = {name: number for each in found for name, number in zip(each["names"], each["scores"], strict=True)}
    assert together == dict(zip(alone["names"], alone["scores"], strict=True))
    for each in found:
        assert each["summary"] == pytest.approx(alone["summary"], abs=1e-12)


CUTS = {
    "blocks": lambda points: overlapping_blocks(points, 2.0, 1.0, 8192),
    "spheres": lambda points: spheres(points, 1.5, 32768),
    "picks": lambda points: voxel_picks(points, 0.1),
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_room_of_200_000_points_is_covered_and_predicted_as_by_one_pass(folder, cut):
    class Cut(RoomTester):
        def split_scene(self, iteration, data_dict):
            seen = torch.zeros(NUM_POINTS, dtype=torch.bool)
            for found in CUTS[cut](data_dict["points"]):
                index, weight = found if isinstance(found, tuple) else (found, None)
                seen[index] = True
                yield take_points(data_dict, index) | ({} if weight is None else {"weight": weight})
            assert seen.all()

        def eval_step(self, iteration, data_dict, output_dict):
            expected = self.model(data_dict["points"])
            torch.testing.assert_close(output_dict["logits"], expected, rtol=1e-5, atol=1e-5)
            return super().eval_step(iteration, data_dict, output_dict)

    tester = Cut(folder, 1, NUM_POINTS)
    tester.run()
    assert tester.names == ["room 0"]


def test_a_room_of_200_000_points_is_thinned_and_brought_back():
    points = Rooms(1, NUM_POINTS)[0]["points"]
    index, inverse = voxel_subsample(points, 0.1)
    assert len(index) < NUM_POINTS / 4
    assert ((points[index][inverse] - points).abs() <= 0.1 + 1e-5).all()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_scenes(folder):
    """The C library gives memory back at once, so that the peak is what is held: 26 MB a room, if rooms were kept."""
    giving_back = {"MALLOC_MMAP_THRESHOLD_": 1_000_000, "MALLOC_TRIM_THRESHOLD_": 1_000_000}
    path = os.environ.get("PYTHONPATH", "")
    (found,) = map(json.loads, results_of([start(SCRIPT, folder, 10, NUM_POINTS, PYTHONPATH=path, **giving_back)]))
    assert found["peaks_mb"][-1] - found["peaks_mb"][1] < 60
