"""The checksum of what processes train, and the verdict that they all come to."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vision3d_engine import ReplicaError
from vision3d_engine.distributed.parallel.replica_check import ReplicaCheck, checksum

CPU = torch.device("cpu")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.uint8, torch.bool)


def summed(*tensors):
    return int(checksum(tensors, CPU))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_bit_and_its_place_count_in_every_type(dtype):
    tensor = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    tensor[0, :2] = torch.tensor([1, 0])
    seen = {summed(tensor)}
    for place in range(tensor.view(torch.uint8).numel()):
        changed = tensor.clone()
        changed.view(torch.uint8).view(-1)[place] ^= 1
        seen.add(summed(changed))
    assert len(seen) == 1 + tensor.view(torch.uint8).numel()
    assert summed(tensor.flip(1)) not in seen
    assert summed(tensor.clone()) == summed(tensor.t().contiguous().t()) in seen


@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 0.5]), min_size=2, max_size=300), st.randoms())
def test_signs_and_permutations_are_seen(values, random):
    """Values with nearly no bits set, of which sums without mixing lose most."""
    shuffled = random.sample(values, len(values))
    one, other = torch.tensor(values), torch.tensor(shuffled)
    assert (summed(one) == summed(other)) == (str(values) == str(shuffled))
    assert summed(one) != summed(-one)
    assert summed(one, one[:1]) != summed(one)
    assert (summed(one, other) == summed(other, one)) == (str(values) == str(shuffled))


def test_a_large_tensor_is_read_in_pieces_whose_order_counts():
    tensor = torch.zeros((1 << 16) + 3, dtype=torch.uint8)
    sums = set()
    for place in (0, 3, 1 << 16, (1 << 16) + 2):
        tensor[place] = 1
        sums.add(summed(tensor))
        tensor[place] = 0
    assert len(sums) == 4


def test_where_a_tensor_lies_in_memory_does_not_count():
    tensor = torch.arange(12.0)
    assert summed(tensor[1:9]) == summed(tensor[1:9].clone()) == summed(torch.arange(24.0)[2:18:2] / 2)


def test_no_tensor_has_a_checksum_too():
    assert summed() == summed(torch.zeros(0)) == 0


class Processes:
    """A world of processes that answer alike, but for the last one."""

    def __init__(self, size, other=None):
        self.size, self.device, self.other = size, CPU, other

    def gather(self, value):
        return [value] * (self.size - 1) + [self.other or value]


class Trained:
    def __init__(self, parameters):
        self.held = parameters

    def groups(self):
        return [len(self.held)]

    def parameters(self):
        return self.held


def check_of(world, parameters, mode="error"):
    warnings = []
    check = ReplicaCheck(world, mode, warnings.append)
    check.watch(lambda: Trained(parameters))
    return check, warnings


def sums_of(*probes):
    """Return what the processes' numbers add up to, in float64 as they travel."""
    numbers = {name: torch.stack([probe[name] for probe in probes]) for name in probes[0]}
    return {name: (float(len(x)), float(x.sum()), float((x * x).sum())) for name, x in numbers.items()}


@given(st.integers(2, 4096), st.integers(0, 2**31))
def test_one_of_thousands_of_processes_is_found_by_sums_alone(size, seed):
    draw = torch.Generator().manual_seed(seed)
    weights = {"a": torch.randn(3, generator=draw), "b": torch.randn(2, generator=draw)}
    drifted = {"a": weights["a"], "b": weights["b"].nextafter(torch.tensor(9.0))}
    other = {"a": "one", "b": "another"}
    check, _ = check_of(Processes(size, other), weights)
    mine, others = check.probe(1), check_of(Processes(size), drifted)[0].probe(1)
    check.judge(sums_of(*[mine] * size), "epoch 1, iteration 10")
    with pytest.raises(ReplicaError, match=r"Last found equal: epoch 1, iteration 10\. "):
        check.judge(sums_of(*[mine] * (size - 1), others), "epoch 1, iteration 20")


def test_only_lines_of_powers_of_two_the_end_and_new_groups_are_due():
    parameters = {"a": torch.ones(2)}
    check, _ = check_of(Processes(2), parameters)
    due = [line for line in range(20) if all(part is not None for part in check.probe(line).values())]
    assert due == [0, 1, 2, 4, 8, 16]
    parameters["b"] = torch.ones(1)
    assert None not in check.probe(7).values()
    assert None in check.probe(7).values()


def test_one_process_and_off_compute_nothing():
    for world, mode in ((Processes(1), "error"), (Processes(2), "off")):
        check = ReplicaCheck(world, mode, print)
        check.watch(lambda: pytest.fail("looked for what is trained"))
        assert check.probe(1) == {}
        check.judge({}, "epoch 1")


def test_a_process_that_looks_alone_is_no_difference_if_all_hold_the_same():
    check, warnings = check_of(Processes(3), {"a": torch.ones(2)})
    check.judge(sums_of(check.probe(1)), "epoch 1, iteration 1")
    assert not warnings
