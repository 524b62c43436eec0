"""A script that any launcher starts, or that starts its own processes; prints how each of them understands itself.

Accelerators are faked: every machine has two, named cuda, and tensors stay on the CPU.
"""

import os
import sys
from types import SimpleNamespace

import torch
import torch.distributed as dist

from vision3d_engine.distributed.processes import get_local_rank
from vision3d_engine.distributed.world import join_world


def fake_accelerators():
    torch.accelerator.is_available = lambda: True
    torch.accelerator.current_accelerator = lambda: torch.device("cuda")
    torch.accelerator.device_count = lambda: 2
    torch.get_device_module = lambda device: SimpleNamespace(set_device=lambda device: None)


def report(device=None):
    world = join_world(device, timeout_s=60)
    assert world.gather(get_local_rank())[world.rank] == world.local_rank
    sys.stdout.write(f"RESULT {world.rank} {world.size} {world.local_rank} {world.device}\n")  # in one piece
    sys.stdout.flush()


def in_a_group_of_its_own(rank, folder, size):
    fake_accelerators()
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    report()
    dist.destroy_process_group()


if __name__ == "__main__":
    if sys.argv[1] == "spawn":
        torch.multiprocessing.spawn(in_a_group_of_its_own, args=(sys.argv[2], 2), nprocs=2)
    elif sys.argv[1] == "own group":
        in_a_group_of_its_own(int(os.environ["RANK"]), sys.argv[2], 2)
    else:
        report("cpu")
