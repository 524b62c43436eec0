"""A test of six scenes whose processes kill themselves in the midst of one: scene_resume_script.py FOLDER 5,17,0

Each number is an attempt in a process of its own: the step, of a batch of fragments, in which it dies, 0 for none.
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch

from tests.stories.scene_script import RoomTester
from vision3d_engine.data.votes import turned

# A test keeps once a second what it has done; a scene, of eighteen steps, takes longer.
STEP_S = 0.06


class Tester(RoomTester):
    fragment_batch_points = 256
    left = 0

    def augmentations(self):
        return [turned(90)]

    def test_step(self, iteration, data_dict):
        time.sleep(STEP_S)
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        logits = super().test_step(iteration, data_dict)["logits"]
        return {"logits": logits + torch.rand_like(logits)}  # drawn alike, whatever was done before

    def eval_step(self, iteration, data_dict, output_dict):
        self.save_result("segmentation", output_dict)
        return super().eval_step(iteration, data_dict, output_dict)


if __name__ == "__main__":
    folder, lasts = Path(sys.argv[1]), list(map(int, sys.argv[2].split(",")))
    del sys.argv[1:3]
    last = lasts[-1]
    for event in lasts[:-1]:
        if (child := os.fork()) == 0:
            last = event
            break
        print("ATTEMPT", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    tester = Tester(folder, 6, 1000, weights=folder.parent / "rooms.pth")
    tester.left = last
    tester.run()
    print("RESULT", len(tester.names))
