"""Tests whole scenes, generated rooms, cut into blocks; says which this process had, and what it held in memory."""

import json
import resource
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from vision3d_engine import SceneTester
from vision3d_engine.data.fragments import overlapping_blocks, take_points

CLASSES = 20


class Rooms(Dataset):
    """Rooms made when they are loaded: a floor and four walls, with a class for each stripe of half a metre."""

    def __init__(self, count, num_points):
        self.count, self.num_points = count, num_points

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        points = rng.uniform(0, (8, 6, 3), (self.num_points, 3)).astype(np.float32)
        face = rng.integers(5, size=self.num_points)
        for number, (axis, place) in enumerate([(2, 0), (0, 0), (0, 8), (1, 0), (1, 6)]):
            points[face == number, axis] = place
        return {
            "points": torch.from_numpy(points),
            "labels": torch.from_numpy(points[:, 0] * 2).long(),
            "name": f"room {index}",
        }


def network():
    generator = torch.Generator().manual_seed(0)
    layers = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, CLASSES))
    for weight in layers.parameters():
        nn.init.normal_(weight, generator=generator)
    return layers


class RoomTester(SceneTester):
    """Cuts rooms into blocks, notes names, scores and the peak of memory after each."""

    fragment_batch_points = 16384

    def __init__(self, folder, count, num_points, workers=0, weights=None):
        super().__init__({"exp": {"output_dir": str(folder)}}, str(weights or folder / "rooms.pth"))
        self.register_loader(DataLoader(Rooms(count, num_points), batch_size=None, num_workers=workers))
        self.register_model(network())
        self.names, self.scores, self.peaks_mb, self.summary = [], [], [], {}

    def split_scene(self, iteration, data_dict):
        for index in overlapping_blocks(data_dict["points"], 2.0, 1.0, 8192):
            yield take_points(data_dict, index)

    def test_step(self, iteration, data_dict):
        return {"logits": self.model(data_dict["points"])}

    def eval_step(self, iteration, data_dict, output_dict):
        score = output_dict["logits"].double().mean().item()
        self.names.append(data_dict["name"])
        self.scores.append(score)
        self.peaks_mb.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return {"score": score, "accuracy": (output_dict["prediction"] == data_dict["labels"]).double().mean()}

    def after_test_epoch(self, summary_dict):
        self.summary = dict(summary_dict)


if __name__ == "__main__":
    folder, count, num_points = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    del sys.argv[1:]
    torch.set_num_threads(1)
    tester = RoomTester(folder, count, num_points)
    tester.run()
    found = {name: getattr(tester, name) for name in ("names", "scores", "peaks_mb", "summary")}
    print("RESULT", json.dumps(found))
