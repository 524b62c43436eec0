"""A process group that somebody else has opened, and a device that is never waited for."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.toys import ToyEpochTrainer, settings
from vision3d_engine import EpochBasedTrainer


@pytest.fixture
def own_group(tmp_path):
    """A process group that the test opened, as Ray or a notebook would."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_group_that_exists_is_joined_and_left_open(own_group, tmp_path):
    toy = ToyEpochTrainer(settings(tmp_path))
    toy.run()
    assert dist.is_initialized()
    assert toy.total_steps == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_steps_between_log_lines_never_wait_for_the_device(tmp_path):
    class Strict(EpochBasedTrainer):
        def __init__(self):
            super().__init__(settings(tmp_path, log_steps=100))
            batches = [{"x": torch.randn(8, 4).pin_memory()} for _ in range(20)]
            self.register_loader(batches, batches)
            model = self.register_model(nn.Linear(4, 1))
            self.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))

        def train_step(self, epoch, iteration, data_dict):
            torch.cuda.set_sync_debug_mode("error" if iteration < 20 else "default")
            loss = self.model(data_dict["x"]).square().mean()
            return {}, {"loss": loss, "size": loss.detach().sqrt()}

        val_step = train_step

    Strict().run()
