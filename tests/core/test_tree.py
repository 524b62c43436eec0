from collections import OrderedDict, UserDict, defaultdict, deque
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from easydict import EasyDict

from vision3d_engine.checkpoint.files import plain_state
from vision3d_engine.core.compare import differences
from vision3d_engine.core.errors import CheckpointError
from vision3d_engine.core.plain import to_plain
from vision3d_engine.core.tree import leaves, map_with_paths, tensors_elsewhere, to_array, to_cpu, to_device, to_tensor


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


def test_objects_that_move_themselves_come_to_the_host_too():
    class Graph:
        def to(self, device):
            return f"moved to {device}"

    assert to_cpu({"graph": Graph(), "x": ONE}) == {"graph": "moved to cpu", "x": ONE}


def test_tensors_become_numbers_or_arrays_and_arrays_become_tensors():
    released = to_array({"one": torch.tensor([2.5], requires_grad=True), "many": torch.arange(3), "text": "x"})
    assert released["one"] == 2.5
    assert isinstance(released["many"], np.ndarray)
    assert released["text"] == "x"
    assert torch.equal(to_tensor([np.arange(3)])[0], torch.arange(3))
    assert (names := to_tensor({"names": np.array(["a", "b"])})["names"]).tolist() == ["a", "b"]
    assert isinstance(names, np.ndarray), "torch has no text"


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


# ------------------------------------------------------------------------------------------- containers of any kind


@dataclass
class Cloud:
    points: Any
    name: str = "cloud"
    center: Any = field(init=False, default=None)
    unset: Any = field(init=False)

    def __post_init__(self):
        self.extra = self.points


@dataclass(frozen=True)
class Frozen:
    points: Any


@dataclass(frozen=True, slots=True)
class Slotted:
    points: Any


class Twice(tuple):  # noqa: SLOT001  has an attribute
    def __new__(cls, value, note):
        twin = super().__new__(cls, (value, value))
        twin.note = note
        return twin


class Named(list):
    def __init__(self, name):
        super().__init__()
        self.name = name


class Wrapper(MutableMapping):
    def __init__(self, first):
        self._held = {"first": first}

    def __getitem__(self, key):
        return self._held[key]

    def __setitem__(self, key, value):
        self._held[key] = value

    def __delitem__(self, key):
        del self._held[key]

    def __iter__(self):
        return iter(self._held)

    def __len__(self):
        return len(self._held)


def named(name, *values):
    nest = Named(name)
    nest.extend(values)
    return nest


ONE = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("nest", "held"),
    [
        (Cloud(ONE), lambda nest: (nest.points, nest.extra)),
        (Frozen(ONE), lambda nest: (nest.points,)),
        (Slotted([ONE]), lambda nest: nest.points),
        (SimpleNamespace(x=ONE, y={"z": ONE}), lambda nest: (nest.x, nest.y["z"])),
        (deque([ONE, ONE], maxlen=2), tuple),
        (OrderedDict(x=ONE), lambda nest: (nest["x"],)),
        (defaultdict(list, x=ONE), lambda nest: (nest["x"],)),
        (EasyDict(x=ONE), lambda nest: (nest.x, nest["x"])),
        (UserDict(x=ONE), lambda nest: (nest["x"],)),
        (Wrapper(ONE), lambda nest: (nest["first"],)),
        (Pair(ONE, "text"), lambda nest: (nest.left,)),
        (Twice(ONE, "note"), tuple),
        (named("name", ONE), tuple),
        (torch.max(ONE, dim=0), lambda nest: (nest.values, nest.indices)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_containers_of_any_kind_are_rebuilt_as_what_they_were_and_left_alone(nest, held):
    moved = to_device({"nest": nest}, "meta")["nest"]
    assert type(moved) is type(nest)
    assert moved is not nest
    assert {tensor.device.type for tensor in held(moved)} == {"meta"}
    assert {tensor.device.type for tensor in held(nest)} == {"cpu"}


def test_what_else_a_container_knows_is_kept():
    nest = (Cloud(ONE), deque([1], maxlen=3), Twice(ONE, "note"), named("name", ONE), defaultdict(list))
    cloud, queue, twice, labelled, default = to_device(nest, "meta")
    assert (cloud.name, cloud.center, hasattr(cloud, "unset")) == ("cloud", None, False)
    assert (queue.maxlen, twice.note, labelled.name, default["new"]) == (3, "note", "name", [])


def test_a_packed_sequence_moves_itself():
    packed = torch.nn.utils.rnn.pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])
    moved = to_device({"packed": packed}, "meta")["packed"]
    assert isinstance(moved, torch.nn.utils.rnn.PackedSequence)
    assert (moved.data.device.type, moved.batch_sizes.device.type) == ("meta", "cpu")


def test_a_container_with_a_method_to_is_asked_to_move_itself():
    class Tensors(dict):
        def to(self, device):
            return Tensors({key: value.to(device) for key, value in self.items()}, moved=True)

    moved = to_device([Tensors(x=ONE)], "meta")[0]
    assert moved["moved"] is True
    assert moved["x"].device.type == "meta"


def test_an_object_whose_to_returns_nothing_stays_in_its_place():
    class Graph:
        def __init__(self):
            self.x = ONE

        def to(self, device):
            self.x = self.x.to(device)

    graph = Graph()
    assert to_device({"graph": graph}, "meta")["graph"] is graph
    assert graph.x.device.type == "meta"


def test_objects_are_named_by_attribute_in_paths_and_differences():
    nest = {"pair": SimpleNamespace(index=Frozen([1])), "queue": deque([2])}
    assert list(leaves(nest)) == [("['pair'].index.points[0]", 1), ("['queue'][0]", 2)]
    other = {"pair": SimpleNamespace(index=Frozen([3])), "queue": deque([2])}
    assert list(differences(nest, other)) == ["['pair'].index.points[0]: 1 and 3"]
    assert list(differences(Frozen(ONE), Frozen(ONE + 1))) == [".points: a tensor of shape (2, 3) with other contents"]


def test_a_state_stays_what_it_was_also_where_it_holds_objects():
    state = {"object": Frozen([ONE]), "queue": deque([1], maxlen=2), "tuple": (1,), "dict": EasyDict(x=1)}
    found = map_with_paths(lambda _, part: part, state)
    assert {key: type(value) for key, value in found.items()} == {
        "object": Frozen,
        "queue": deque,
        "tuple": tuple,
        "dict": dict,
    }
    assert found["queue"].maxlen == 2
    assert found["object"].points[0] is ONE
    for key in ("object", "queue"):
        with pytest.raises(CheckpointError, match=rf"state\['{key}'\] is .*, which a checkpoint cannot hold"):
            plain_state({key: state[key]})


def test_a_queue_in_a_config_is_printed_as_a_list():
    assert to_plain({"last": deque([1, 2], maxlen=2)}) == {"last": [1, 2]}


# ------------------------------------------------------------------------------------------- what stays behind


class Pairs:
    def __init__(self):
        self.index = torch.ones(2)
        self.levels = [torch.ones(2), {"deep": torch.ones(1)}]
        self.owner = self
        self.count = 2


def test_tensors_that_stay_behind_are_named_also_inside_objects():
    pairs = Pairs()
    batch = to_device({"x": torch.ones(1), "pairs": pairs, "cloud": Frozen((pairs, Pairs()))}, "meta")
    assert tensors_elsewhere(batch, torch.device("meta")) == [
        "['pairs'].index",
        "['pairs'].levels[0]",
        "['pairs'].levels[1]['deep']",
        "['cloud'].points[1].index",
        "['cloud'].points[1].levels[0]",
        "['cloud'].points[1].levels[1]['deep']",
    ]
    assert tensors_elsewhere(batch["pairs"], torch.device("cpu")) == []
