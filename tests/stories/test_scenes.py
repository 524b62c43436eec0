"""Whole scenes on several processes, of the size that scans have, and what they take."""

import json
import os
import random
from pathlib import Path

import pytest
import torch

from tests.stories.launching import outputs_of, results_of, start, start_ranks
from tests.stories.scene_script import Rooms, RoomTester, network
from vision3d_engine.data.fragments import overlapping_blocks, spheres, take_points, voxel_picks, voxel_subsample

SCRIPT = Path(__file__).parent / "scene_script.py"
RESUMING = SCRIPT.with_name("scene_resume_script.py")
STEPS_A_SCENE = 18
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


def left_by(folder):
    """The bytes of all that a test leaves for others."""
    files = {path.name: path.read_bytes() for path in folder.glob("results.*") if path.is_file()}
    return files | {path.name: path.read_bytes() for path in folder.glob("results/[!.]*/*")}


def ended(folder, steps, size=1):
    """Run the script with --resume to its end, each attempt killed in a step; return exit codes and outputs."""
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    words = (RESUMING, folder, ",".join(map(str, steps)), "--resume")
    started = [start(*words, PYTHONPATH=path)] if size == 1 else start_ranks(*words, size=size, PYTHONPATH=path)
    return [(code, output.split("\n")) for code, output, _ in outputs_of(started)]


@pytest.fixture
def undisturbed(folder):
    assert ended(folder / "undisturbed", [0]) == [(0, ["RESULT 6", ""])]
    files = left_by(folder / "undisturbed")
    assert len(files) == 9
    return files


def test_six_scenes_killed_in_the_midst_of_one_again_and_again_leave_the_files_of_an_undisturbed_test(
    folder, undisturbed
):
    rng = random.Random(4)
    steps = [rng.randint(STEPS_A_SCENE + 6, 2 * STEPS_A_SCENE - 2) for _ in range(4)]
    ((code, lines),) = ended(folder / "killed", [*steps, 0])
    assert (code, lines.count("ATTEMPT -9")) == (0, 4)
    assert "RESULT 6" not in lines, "the last attempt has not begun anew"
    assert left_by(folder / "killed") == undisturbed


@pytest.mark.slow
def test_two_processes_that_are_killed_in_the_midst_of_scenes_leave_the_files_of_an_undisturbed_test(
    folder, undisturbed
):
    for last in (STEPS_A_SCENE + 9, STEPS_A_SCENE + 6):
        assert -9 in [code for code, _ in ended(folder / "killed", [last], size=2)]
    assert [code for code, _ in ended(folder / "killed", [0], size=2)] == [0, 0]
    assert left_by(folder / "killed") == undisturbed


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_scenes(folder):
    """The C library gives memory back at once, so that the peak is what is held: 26 MB a room, if rooms were kept."""
    giving_back = {"MALLOC_MMAP_THRESHOLD_": 1_000_000, "MALLOC_TRIM_THRESHOLD_": 1_000_000}
    path = os.environ.get("PYTHONPATH", "")
    (found,) = map(json.loads, results_of([start(SCRIPT, folder, 10, NUM_POINTS, PYTHONPATH=path, **giving_back)]))
    assert found["peaks_mb"][-1] - found["peaks_mb"][1] < 60
