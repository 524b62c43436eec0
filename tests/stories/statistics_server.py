"""A process of a world that trains with statistics of its parameters, some of which are planted to stay as they are."""

import torch
from torch import nn

from tests.stories.serving import serve
from vision3d_engine import EpochBasedTrainer, build_dataloader


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 48

    def __getitem__(self, index):
        return {"x": torch.randn(3, generator=torch.Generator().manual_seed(index), dtype=torch.float64)}


class Net(nn.Module):
    """Seven units on two processes, so that shards are unequal; the first three are off for every sample.

    With fsdp2 these are all but one of the rows that the main process holds.
    """

    def __init__(self):
        super().__init__()
        self.first, self.last, self.unused = nn.Linear(3, 7), nn.Linear(7, 1), nn.Linear(2, 2)
        with torch.no_grad():
            self.first.bias[:3] = -100

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))[:, 0]


class Trainer(EpochBasedTrainer):
    def __init__(self, folder, turns=False, batch_size=4, **trainer):
        asked = {"max_epoch": 2, "val_every": "never", "log_steps": 2, "progress_bar": False, **trainer}
        super().__init__({"exp": {"output_dir": folder}, "trainer": {"parameter_statistics": True, **asked}})
        self.register_loader(build_dataloader(Rows(), batch_size=batch_size, shuffle=True))
        torch.manual_seed(0)
        self.turns = turns
        model = self.register_model(Net().double())
        parts = {"first": model.first, "last": model.last, "unused": model.unused}
        if turns:
            for name, part in parts.items():
                self.register_optimizer(torch.optim.SGD(part.parameters(), lr=0.1, momentum=0.9), name)
        else:
            self.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))

    def train_step(self, epoch, iteration, data_dict):
        x = data_dict["x"]
        if self.turns:
            self.update("first", (self.model(x) - 1).square().mean())
            self.update("last", (self.model(x) - 1).square().mean())
            return {}, {"loss": torch.zeros(())}
        return {}, {"loss": (self.model(x) - 1).square().mean()}


def run(case):
    trainer = Trainer(**case)
    trainer.run()
    return {"updates": trainer.updates}


if __name__ == "__main__":
    serve(run)
