"""Which way of sharing a model the settings choose."""

import pytest
import torch
from torch import nn

from vision3d_engine.core.errors import ConfigError
from vision3d_engine.core.settings import TrainerSettings
from vision3d_engine.distributed.parallel.base import Parallel
from vision3d_engine.distributed.parallel.choose import choose_parallel
from vision3d_engine.distributed.parallel.ddp import DataParallel
from vision3d_engine.distributed.parallel.fsdp2 import FullyShardedParallel
from vision3d_engine.distributed.world import World


class Several(World):
    size = 3


CPU = torch.device("cpu")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2", "none"])
def test_one_process_holds_the_whole_model_whatever_the_settings_say(parallel):
    chosen = choose_parallel(TrainerSettings(parallel=parallel, static_graph=True, sync_batchnorm=True), World(CPU))
    model = nn.Linear(2, 1)
    assert type(chosen) is Parallel
    assert chosen.wrap(model) is model


def test_several_processes_take_the_way_of_the_settings():
    assert type(choose_parallel(TrainerSettings(), Several(CPU))) is DataParallel
    assert type(choose_parallel(TrainerSettings(parallel="fsdp2"), Several(CPU))) is FullyShardedParallel
    with pytest.raises(ConfigError, match="'none', but 3 processes were started, which would train 3 models"):
        choose_parallel(TrainerSettings(parallel="none"), Several(CPU))


@pytest.mark.parametrize("setting", [{"gradient_compression": "fp16"}, {"find_unused_parameters": True}])
def test_settings_of_ddp_are_refused_with_shards(setting):
    with pytest.raises(ConfigError, match=f"trainer.{next(iter(setting))} has no meaning"):
        choose_parallel(TrainerSettings(parallel="fsdp2", **setting), Several(CPU))
