"""Which modules become blocks, and which way the settings choose."""

import pytest
import torch
from torch import nn

from vision3d_engine.core.errors import ConfigError
from vision3d_engine.core.settings import TrainerSettings
from vision3d_engine.distributed.parallel import DataParallel, Parallel, choose_parallel
from vision3d_engine.distributed.sharding import ShardedParallel, blocks_of
from vision3d_engine.distributed.shards import descriptions, put_in, take_out
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
    assert type(choose_parallel(TrainerSettings(parallel="fsdp2"), Several(CPU))) is ShardedParallel
    with pytest.raises(ConfigError, match="'none', but 3 processes were started, which would train 3 models"):
        choose_parallel(TrainerSettings(parallel="none"), Several(CPU))


@pytest.mark.parametrize("setting", [{"gradient_compression": "fp16"}, {"find_unused_parameters": True}])
def test_settings_of_ddp_are_refused_with_shards(setting):
    with pytest.raises(ConfigError, match=f"trainer.{next(iter(setting))} has no meaning"):
        choose_parallel(TrainerSettings(parallel="fsdp2", **setting), Several(CPU))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 2))
        self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, x):
        return self.layers(x)


def model():
    net = nn.Module()
    net.blocks = nn.ModuleList([Block(), Block()])
    net.head = nn.Linear(10, 100)
    return net


def named(net, blocks):
    names = {id(module): name for name, module in net.named_modules()}
    return [names[id(block)] for block in blocks]


def test_blocks_are_named_by_their_classes_inner_ones_first():
    net = model()
    found = named(net, blocks_of(net, ["Block", "Sequential"], 1))
    assert found == ["blocks.1.layers", "blocks.1", "blocks.0.layers", "blocks.0"]


def test_blocks_by_size_are_entries_of_containers_whose_own_parameters_are_many():
    """A list has no forward pass, attention uses the weights of its inner layer itself, the head is an attribute."""
    net = model()
    assert named(net, blocks_of(net, [], 300)) == ["blocks.1", "blocks.0"]
    inner = named(net, blocks_of(net, [], 100))
    assert inner == ["blocks.1.layers.0", "blocks.1", "blocks.0.layers.0", "blocks.0"]
    assert blocks_of(net, [], 10_000) == []


def test_an_unknown_block_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"names 'Blok', .*did you mean 'Block'\?.*ModuleList, MultiheadAttention"):
        blocks_of(model(), ["Blok"], 1)


def test_a_state_without_spread_tensors_is_left_as_it_is():
    state = {"model": {"w": torch.ones(2)}, "list": [1, (torch.zeros(1), "x")]}
    kept, taken = take_out(state)
    assert kept == state
    assert taken == {}


def test_tensors_come_back_to_the_places_of_their_descriptions():
    state = {"a": {0: [torch.empty(2, device="meta"), 5]}, "b": (torch.ones(1),)}
    wanted = descriptions(state)
    assert list(wanted) == ["['a'][0][0]"]
    filled = put_in(state, {path: torch.full(each.shape, 3.0) for path, each in wanted.items()})
    assert filled["a"][0][0].tolist() == [3, 3]
    assert filled["b"] == state["b"]
