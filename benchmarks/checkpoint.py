"""What saving and resuming cost, as ratios within one run: ``python benchmarks/checkpoint.py``."""

import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset

from vision3d_engine.checkpoint.files import write_checkpoint
from vision3d_engine.checkpoint.manager import CheckpointManager
from vision3d_engine.core.seeding import derived_seed
from vision3d_engine.data.sample_seeds import SampleIndex, SeededDataset
from vision3d_engine.data.sampler import PositionSampler

MEGABYTES = 100
ROUNDS = 9


class Blocks(nn.Module):
    """A state of 100 MB in 25 tensors, of which a step uses one."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(1000, 1000, bias=False) for _ in range(MEGABYTES // 4))

    def forward(self, x):
        return self.layers[0](x)


def step(model, x):
    """About 10 ms of work on one thread."""
    for _ in range(3):
        model(x).square().mean().backward()


def step_times(model, x, busy):
    """Return the time of steps for as long as ``busy`` says, at least five."""
    times = []
    while busy() or len(times) < 5:
        began = time.perf_counter()
        step(model, x)
        times.append(time.perf_counter() - began)
    return times


def saving(folder):
    """Step time while a save is in flight against none; pause at the boundary against a synchronous torch.save."""
    model, x = Blocks(), torch.randn(300, 1000)
    manager = CheckpointManager(folder, in_background=True)
    step(model, x)
    manager.save_checkpoint("checkpoint.pth", {}, model)  # memory is taken and cleared once a run
    manager.join()
    ratios, pauses, syncs, durable = [], [], [], []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        torch.save({"model": model.state_dict()}, folder / "plain.pth")
        syncs.append(time.perf_counter() - began)
        began = time.perf_counter()
        write_checkpoint(folder / "whole.pth", {"model": model.state_dict()})
        durable.append(time.perf_counter() - began)
        quiet = step_times(model, x, lambda: False) + step_times(model, x, lambda: False)
        began = time.perf_counter()
        manager.save_checkpoint("checkpoint.pth", {}, model)
        pauses.append(time.perf_counter() - began)
        loud = step_times(model, x, lambda: not all(job.done() for job in manager._writer._jobs))  # noqa: SLF001
        manager.join()
        ratios.append(statistics.median(loud) / statistics.median(quiet))
    return {
        "step_while_saving_to_step": statistics.median(ratios),
        "step_ratios": sorted(round(ratio, 3) for ratio in ratios),
        "pause_to_torch_save": statistics.median(pauses) / statistics.median(syncs),
        "pause_ms": statistics.median(pauses) * 1e3,
        "torch_save_ms": statistics.median(syncs) * 1e3,
        "write_verify_sync_ms": statistics.median(durable) * 1e3,
    }


def resuming():
    """Time from a sampler's beginning to its first batch, at position 0 and at position 1,000,000."""

    def begin(start):
        began = time.perf_counter()
        sampler = PositionSampler(range(10_000_000), 1, shuffle=True)
        sampler.begin(1, 1, start)
        next(iter(sampler))
        return time.perf_counter() - began

    times = {start: statistics.median(begin(start) for _ in range(ROUNDS)) for start in (0, 1_000_000)}
    return {"resume_ratio": times[1_000_000] / times[0], "resume_ms": times[1_000_000] * 1e3}


class Nothing(Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, index):
        return index


def seeding():
    """Cost of position-bound seeding, per sample, over the data set alone."""
    plain, seeded, base, count = Nothing(), SeededDataset(Nothing()), derived_seed(0), 20_000
    began = time.perf_counter()
    for _ in range(count):
        plain[3]
    middle = time.perf_counter()
    for position in range(count):
        seeded[SampleIndex(3, position, 1, base)]
    ended = time.perf_counter()
    return {"seeding_us_per_sample": ((ended - middle) - (middle - began)) / count * 1e6}


def main():
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = saving(Path(folder)) | resuming() | seeding()
    targets = {
        "step_while_saving_to_step": 1.10,
        "pause_to_torch_save": 0.25,
        "resume_ratio": 2.0,
        "seeding_us_per_sample": 15.0,
    }
    for name, value in found.items():
        target = f"   (target: at most {targets[name]})" if name in targets else ""
        print(f"{name:28} {value if isinstance(value, list) else round(value, 3)}{target}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
