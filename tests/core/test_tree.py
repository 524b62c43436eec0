from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from easydict import EasyDict

from vision3d_engine.core.compare import differences
from vision3d_engine.core.tree import leaves, map_with_paths, to_array, to_device, to_tensor


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


# ------------------------------------------------------------------------------------------- paths


def test_every_leaf_has_a_path_as_python_writes_it():
    nest = {"a": [1, (2, Pair(3, 4))], 5: {"b'c": torch.Size([6])}, "empty": {}}
    assert list(leaves(nest)) == [
        ("['a'][0]", 1),
        ("['a'][1][0]", 2),
        ("['a'][1][1][0]", 3),
        ("['a'][1][1][1]", 4),
        ('[5]["b\'c"]', torch.Size([6])),
    ]
    for path, leaf in leaves(nest):
        assert eval(f"nest{path}", {"nest": nest}) == leaf


def test_a_mapped_nest_is_plain_and_its_containers_are_seen_before_what_they_hold():
    seen = []

    def function(path, part):
        seen.append(path)
        return [part.left, "opened"] if isinstance(part, Pair) else part

    found = map_with_paths(function, EasyDict(a=Pair(1, 2), b=(3,)))
    assert found == {"a": [1, "opened"], "b": (3,)}
    assert type(found) is dict
    assert seen == ["", "['a']", "['a'][0]", "['a'][1]", "['b']", "['b'][0]"]


def test_a_read_only_mapping_is_opened_too():
    moved = to_device(MappingProxyType({"x": torch.ones(1)}), "meta")
    assert moved["x"].device.type == "meta"


def test_differences_name_the_places():
    a = {"x": torch.ones(2), "n": float("nan"), "l": [1, 2, 3], "t": (1,), "only": 1}
    b = {"x": torch.tensor([1.0, 2.0]), "n": float("nan"), "l": [1, 3], "t": [1]}
    assert list(differences(a, a)) == []
    assert list(differences(a, b)) == [
        "['x']: a tensor of shape (2,) with other contents",
        "['l'][1]: 2 and 3",
        "['l'][2]: only in the first",
        "['t']: a tuple of 1 and a list of 1",
        "['only']: only in the first",
    ]
