"""What it takes to test whole scenes: time and memory of generated rooms, cut in several ways.

    python benchmarks/scenes.py [--points 200000] [--rooms 3] [--cut blocks]

Each way of cutting is tested by a process of its own, which says how far its peak of resident memory lies above what it
held before the test, after the first room and after the last one. The C library is told to give memory back at once, so
that the peak is what is held and not what it keeps for later. The network looks at single points and makes 256
numbers of each, so that what a pass over a whole room takes is seen.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from vision3d_engine import SceneTester, ignore_command_line
from vision3d_engine.data.fragments import overlapping_blocks, spheres, take_points, voxel_picks

GIVING_BACK = {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000"}
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples" / "segmentation"))
from data import CLASSES, make_room  # noqa: E402

CUTS = {
    "one pass": lambda points: [torch.arange(len(points))],
    "blocks": lambda points: overlapping_blocks(points, 1.0, 0.5, 8192),
    "spheres": lambda points: spheres(points, 1.0, 16384),
    "picks": lambda points: voxel_picks(points, 0.04),
}


class Rooms(Dataset):
    """Rooms of one size, made when they are loaded."""

    def __init__(self, count, num_points):
        self.count, self.num_points = count, num_points

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return make_room(self.num_points, 0.5, np.random.default_rng(index))


def network():
    generator = torch.Generator().manual_seed(0)
    layers = nn.Sequential(nn.Linear(3, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, len(CLASSES)))
    for weight in layers.parameters():
        nn.init.normal_(weight, std=0.1, generator=generator)
    return layers


class RoomTester(SceneTester):
    """Compares with one pass over the room, but not while memory is measured."""

    fragment_batch_points = 16384

    def __init__(self, folder, rooms, cut):
        ignore_command_line()
        super().__init__({"exp": {"output_dir": str(folder)}}, str(folder / "weights.pth"))
        self.register_loader(DataLoader(rooms, batch_size=None))
        self.register_model(network())
        torch.save({"model": self.model.state_dict()}, folder / "weights.pth")
        self.cut, self.peaks_mb, self.last = CUTS[cut], [], None

    def split_scene(self, iteration, data_dict):
        for found in self.cut(data_dict["points"]):
            index, weight = found if isinstance(found, tuple) else (found, None)
            yield take_points(data_dict, index) | ({} if weight is None else {"weight": weight})

    def test_step(self, iteration, data_dict):
        return {"logits": self.model(data_dict["points"])}

    def eval_step(self, iteration, data_dict, output_dict):
        self.peaks_mb.append(peak_mb())
        self.last = (data_dict["points"], output_dict["logits"])
        return {"accuracy": (output_dict["prediction"] == data_dict["labels"]).float().mean()}


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(cut, num_points, rooms):
    """Return seconds a room, peaks of memory above what was held before, and the largest difference from one pass."""
    with tempfile.TemporaryDirectory() as folder:
        tester = RoomTester(Path(folder), Rooms(rooms, num_points), cut)
        before, started = peak_mb(), time.perf_counter()
        tester.run()
        seconds = time.perf_counter() - started
    points, logits = tester.last
    with torch.no_grad():
        difference = (logits - tester.model(points)).abs().max().item()
    peaks = {"first_mb": tester.peaks_mb[0] - before, "last_mb": tester.peaks_mb[-1] - before}
    return {"cut": cut, "room_s": seconds / rooms, "difference": difference} | peaks


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=200_000)
    parser.add_argument("--rooms", type=int, default=3)
    parser.add_argument("--cut", choices=CUTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.cut:
        print("RESULT", json.dumps(measure(arguments.cut, arguments.points, arguments.rooms)))
        return
    options = ["--points", str(arguments.points), "--rooms", str(arguments.rooms)]
    for cut in CUTS:
        command = [sys.executable, __file__, "--cut", cut, *options]
        output = subprocess.run(
            command, check=True, capture_output=True, text=True, env=os.environ | GIVING_BACK
        ).stdout
        found = json.loads(next(line for line in output.splitlines() if line.startswith("RESULT")).split(" ", 1)[1])
        print(
            f"{cut:9} {found['room_s']:6.1f} s a room, peak {found['first_mb']:5.0f} MB after the first and "
            f"{found['last_mb']:5.0f} MB after the last, {found['difference']:.1e} from one pass"
        )


if __name__ == "__main__":
    main()
