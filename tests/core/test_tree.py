from typing import Any, NamedTuple

import numpy as np
import torch
from easydict import EasyDict

from vision3d_engine.core.tree import to_array, to_device, to_tensor


class Pair(NamedTuple):
    left: Any
    right: Any


def test_a_nest_keeps_its_containers_and_everything_that_is_no_tensor():
    nest = {"a": [torch.ones(2), "text"], "b": Pair(torch.zeros(1), None), "c": (1, {"d": torch.ones(3)})}
    moved = to_device(nest, "meta")
    assert isinstance(moved["b"], Pair)
    assert isinstance(moved["c"], tuple)
    assert (moved["a"][1], moved["b"].right, moved["c"][0]) == ("text", None, 1)
    assert all(x.device.type == "meta" for x in (moved["a"][0], moved["b"].left, moved["c"][1]["d"]))
    assert nest["a"][0].device.type == "cpu"


def test_a_subclass_of_dict_stays_one():
    moved = to_device(EasyDict(x=torch.ones(1), y=EasyDict(z=torch.ones(1))), "meta")
    assert isinstance(moved, EasyDict)
    assert moved.x.device.type == moved.y.z.device.type == "meta"


def test_objects_that_move_themselves_are_moved():
    class Graph:
        device = "cpu"

        def to(self, device):
            self.device = str(device)
            return self

    assert to_device({"graph": Graph()}, "meta")["graph"].device == "meta"


def test_tensors_become_numbers_or_arrays_and_arrays_become_tensors():
    released = to_array({"one": torch.tensor([2.5], requires_grad=True), "many": torch.arange(3), "text": "x"})
    assert released["one"] == 2.5
    assert isinstance(released["many"], np.ndarray)
    assert released["text"] == "x"
    assert torch.equal(to_tensor([np.arange(3)])[0], torch.arange(3))
