"""A test of 200 small scenes with files and metrics, whose processes kill themselves: results_script.py FOLDER 5,17,0

Each number is an attempt in a process of its own: the event in which it dies, 0 for none. Events are steps, renames of
finished files and lines of journals, of which only half is written when it is the last.
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch.utils.data import Dataset
from torchmetrics import MeanMetric

from vision3d_engine import BatchTester, ConfusionMatrix, RegistrationRecall, build_dataloader
from vision3d_engine.core import background, files
from vision3d_engine.loop import case_block

folder, lasts = Path(sys.argv[1]), list(map(int, sys.argv[2].split(",")))
del sys.argv[1:3]
background._EVERY_S, case_block._CASES = 0.002, 8
left = [lasts[-1]]


def happens():
    left[0] -= 1
    return left[0] == 0


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def counted(real):
    def replace(*args):
        if happens():
            die()
        return real(*args)

    return replace


def torn(real):
    def add(self, piece):
        if happens():
            real(self, piece[: len(piece) // 2])
            die()
        real(self, piece)

    return add


class Scenes(Dataset):
    def __len__(self):
        return 200

    def __getitem__(self, index):
        return {"points": torch.rand(5, 3), "name": f"area {index % 3}/scene {index}"}


def drawn_transform():
    """A turn by 0 or 90 degrees and a move by a multiple of 1/256: sums of such errors are exact in any order."""
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    transform = torch.eye(4)
    transform[:3, :3] = quarter if torch.rand(()) < 0.5 else transform[:3, :3]
    transform[0, 3] = torch.randint(256, ()) / 256
    return transform


class Tester(BatchTester):
    def __init__(self, cfg):
        super().__init__(cfg, str(folder.parent / "weights.pth"))
        self.register_model(torch.nn.Linear(3, 2))
        self.register_loader(build_dataloader(Scenes(), batch_size=3, num_workers=0))
        self.iou = self.register_metric("seg", ConfusionMatrix(2))
        self.recall = self.register_metric("pose", RegistrationRecall(max_rotation_deg=100, max_translation=0.5))
        self.average = self.register_metric("average", MeanMetric().set_dtype(torch.float64))

    def test_step(self, iteration, data_dict):
        time.sleep(0.004)
        if happens():
            die()
        return {"scores": self.model(data_dict["points"]) + torch.rand(())}

    def eval_step(self, iteration, data_dict, output_dict):
        self.save_result("scores", output_dict)
        self.iou.update(torch.rand(5, 2), torch.randint(2, (5,)))
        self.recall.update(drawn_transform(), torch.eye(4))
        self.average.update(torch.rand((), dtype=torch.float64))
        return {"score": output_dict["scores"].mean(), "noise": torch.rand(())}

    def metric_weight(self, data_dict, output_dict, result_dict):
        return {"score": result_dict["noise"]}


files.Path.replace, files.GrowingFile.add = counted(Path.replace), torn(files.GrowingFile.add)
for event in lasts[:-1]:
    if (child := os.fork()) == 0:
        left[0] = event
        break
    print("ATTEMPT", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
Tester({"exp": {"output_dir": str(folder)}, "trainer": {"progress_bar": False}}).run()
sys.stdout.flush()
