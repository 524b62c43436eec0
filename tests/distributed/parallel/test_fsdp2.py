"""Which modules become blocks."""

import pytest
from torch import nn

from vision3d_engine.core.errors import ConfigError
from vision3d_engine.distributed.parallel.fsdp2 import blocks_of


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
