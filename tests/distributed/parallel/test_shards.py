"""States whose spread tensors lie elsewhere."""

import torch

from vision3d_engine.distributed.parallel.shards import descriptions, put_in, take_out


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
