"""``vision3d-engine verify-resume`` proves exactness of a user's script, or names what breaks it."""

import subprocess
import sys
import textwrap

import pytest

SCRIPT = """
    import random
    import numpy as np
    import torch
    from torch import nn
    from torch.utils.data import Dataset
    from vision3d_engine import EpochBasedTrainer, build_dataloader, get_parser

    get_parser().add_argument("--fault", default="none")

    class Cubes(Dataset):
        own = np.random.default_rng()

        def __len__(self):
            return 24

        def __getitem__(self, index):
            noise = self.own.normal() if self.fault == "data" else np.random.normal()
            return {"x": torch.randn(3) + noise, "y": float(index)}

    class Trainer(EpochBasedTrainer):
        def __init__(self):
            super().__init__({"exp": {"output_dir": "elsewhere"}, "trainer": {"max_epoch": 2}})
            Cubes.fault = self.args.fault
            train = build_dataloader(Cubes(), 4, num_workers=0, shuffle=True)
            self.register_loader(train, build_dataloader(Cubes(), 4, num_workers=0))
            torch.manual_seed(0)
            model = self.register_model(nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.Linear(8, 1)))
            self.register_optimizer(torch.optim.Adam(model.parameters()))
            self.calls = 0

        def before_train_step(self, epoch, iteration, data_dict):
            if self.args.fault == "draw":
                random.seed()

        def train_step(self, epoch, iteration, data_dict):
            self.calls += 1
            factor = self.calls if self.args.fault == "state" else 1
            return {}, {"loss": factor * (self.model(data_dict["x"])[:, 0] - data_dict["y"]).square().mean()}

        def val_step(self, epoch, iteration, data_dict):
            return {}, {"size": self.model(data_dict["x"]).abs().mean()}

    if __name__ == "__main__":
        Trainer().run()
"""


def verify(folder, fault):
    script = folder / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, "-m", "vision3d_engine", "verify-resume", "--steps", "9", str(script), "--fault", fault]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)


def test_an_exact_script_is_proven_and_its_folder_is_not_touched(tmp_path):
    done = verify(tmp_path, "none")
    assert done.returncode == 0, done.stderr
    assert "the same bits: steps 4 to 9 of train.py, resumed after a kill at step 6" in done.stdout
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("data", r"at step 4 (epoch 1, iteration 4): the batch differs in ['x'], sample [0, 1, 2]"),
        ("draw", r"the generator of python is in another state"),
        ("state", r"at step 4 (epoch 1, iteration 4): the loss is"),
    ],
)
def test_what_is_not_exact_is_named_with_its_step(fault, message, tmp_path):
    done = verify(tmp_path, fault)
    assert done.returncode == 1
    assert message in done.stderr


def test_a_script_that_fails_shows_its_error(tmp_path):
    (tmp_path / "bad.py").write_text("raise ValueError('no data here')")
    command = [sys.executable, "-m", "vision3d_engine", "verify-resume", "bad.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert "bad.py ended with 1 after 0 training steps" in done.stderr
    assert "no data here" in done.stderr
