"""Trains as one of several processes, with a window of steps that is profiled."""

import sys

import torch

from vision3d_engine import EpochBasedTrainer, build_dataloader


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, index):
        return {"x": torch.full((3,), index / 32)}


class Trainer(EpochBasedTrainer):
    def train_step(self, epoch, iteration, data_dict):
        return {}, {"loss": self.model(data_dict["x"]).square().mean()}


if __name__ == "__main__":
    folder, parallel, window = sys.argv[1:4]
    sys.argv[1:] = []
    options = {"max_epoch": 1, "val_every": "never", "parallel": parallel, "profile": None if window == "-" else window}
    trainer = Trainer({"exp": {"output_dir": folder}, "trainer": options})
    trainer.register_loader(build_dataloader(Rows(), batch_size=2), None)
    torch.manual_seed(0)
    model = trainer.register_model(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1)))
    trainer.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    trainer.run()
    state = {name: getattr(each, "full_tensor", lambda each=each: each)() for name, each in model.state_dict().items()}
    print("RESULT", sorted((name, each.tolist()) for name, each in state.items()))
