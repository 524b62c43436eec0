"""Kill a training again and again with SIGKILL, resume it each time, and compare the end with that of a straight run.

``python benchmarks/kill_storm.py --kills 200`` for both trainers, with two data workers, random augmentation,
dropout, batch norm, accumulation and asynchronous saves. Compared bit for bit: weights, optimizer, schedule,
selection, and every number of ``metrics.jsonl``. Every kill is a real one of a real process, which is forked to save
the start of python.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from vision3d_engine import EpochBasedTrainer, IterBasedTrainer, build_dataloader
from vision3d_engine.core import files as core_files

SAMPLES, BATCH, EPOCHS = 46, 4, 4


class Clouds(Dataset):
    """Point clouds (16, 3) with noise of three generators."""

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        points = torch.full((16, 3), index / SAMPLES)
        points += 0.1 * torch.randn(16, 3) + 0.1 * torch.from_numpy(np.random.normal(size=(16, 3))).float()  # noqa: NPY002
        return {"points": points * random.uniform(0.9, 1.1), "index": index}


class Steps:
    """Registers the parts and has the two steps; ``die`` may end the process in them."""

    def __init__(self, folder, resume, die, workers):
        trainer = {"max_epoch": EPOCHS, "grad_acc_steps": 2, "log_steps": 3, "save_every": "4 iterations"}
        trainer |= {"resume": resume, "num_iters_per_epoch": 9}
        super().__init__({"exp": {"output_dir": str(folder), "seed": 3}, "trainer": trainer})
        self.die = die
        train = build_dataloader(Clouds(), BATCH, num_workers=workers, shuffle=True)
        self.register_loader(train, build_dataloader(Clouds(), 8, num_workers=0))
        torch.manual_seed(0)
        layers = nn.Linear(48, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 1)
        model = self.register_model(nn.Sequential(nn.Flatten(), *layers))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        self.register_optimizer(optimizer)
        self.register_scheduler(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20))
        self.save_best_model_on_metric("error", largest=False)

    def train_step(self, epoch, iteration, data_dict):
        self.die("step")
        error = self.model(data_dict["points"])[:, 0] - data_dict["index"] / SAMPLES
        error = error + 0.01 * float(np.random.normal()) + 0.01 * random.random()  # noqa: NPY002
        return {}, {"loss": error.square().mean(), "mae": error.abs().mean()}

    def val_step(self, epoch, iteration, data_dict):
        self.die("validation")
        error = self.model(data_dict["points"])[:, 0] - data_dict["index"] / SAMPLES
        return {}, {"error": error.abs().mean()}


class EpochStorm(Steps, EpochBasedTrainer):
    pass


class IterStorm(Steps, IterBasedTrainer):
    pass


KINDS = {"epoch": EpochStorm, "iter": IterStorm}
PLACES = ("step", "validation", "write", "file sync", "rename", "folder sync")


class HauntedFile:
    """A file each of whose writes visits a place."""

    def __init__(self, file, visit):
        self.file, self.visit, self.flush = file, visit, file.flush

    def write(self, data):
        self.visit("write")
        return self.file.write(data)


class Death:
    """Ends this process, without any farewell, at the n-th visit of a place."""

    def __init__(self, place=None, visits=1):
        self.place, self.visits = place, visits

    def __call__(self, place):
        if place == self.place:
            self.visits -= 1
            if self.visits <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)

    def haunt(self):
        """Visit the places in the engine where a file is written."""
        save = torch.save
        torch.save = lambda state, file: save(state, HauntedFile(file, self))
        self._before(os, "fsync", "file sync")
        self._before(Path, "replace", "rename")
        self._before(core_files, "sync_folder", "folder sync")

    def _before(self, owner, name, place):
        original = getattr(owner, name)

        def visited(*args, **kwargs):
            self(place)
            return original(*args, **kwargs)

        setattr(owner, name, visited)


def start(kind, folder, resume, death, workers):
    """Fork a process that trains; return its number."""
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        death.haunt()
        KINDS[kind](folder, resume, death, workers).run()
        code = 0
    except BaseException:  # noqa: BLE001  the log is all that is left of a process
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def end_of(pid):
    """Wait for a process and return its exit status."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def outcome(folder):
    """Return what a run has ended with: its state, and its numbers without their times."""
    state = torch.load(folder / "checkpoints" / "checkpoint.pth", weights_only=True)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    parts = {key: state[key] for key in ("model", "optimizer", "scheduler", "ckpt_manager", "progress", "metadata")}
    return parts, [{key: value for key, value in row.items() if key != "time_s"} for row in rows]


def differences(a, b, path=""):
    """Yield the places where two nests are not equal bit for bit."""
    if type(a) is not type(b):
        yield f"{path}: {type(a).__name__} and {type(b).__name__}"
    elif isinstance(a, torch.Tensor):
        if a.dtype != b.dtype or not torch.equal(a, b):
            yield f"{path}: tensors differ"
    elif isinstance(a, dict):
        for key in [*a, *(key for key in b if key not in a)]:
            yield from differences(a.get(key), b.get(key), f"{path}[{key!r}]")
    elif isinstance(a, list | tuple):
        if len(a) != len(b):
            yield f"{path}: {len(a)} and {len(b)} entries"
        for number, pair in enumerate(zip(a, b, strict=False)):
            yield from differences(*pair, f"{path}[{number}]")
    elif a != b:
        yield f"{path}: {a!r} and {b!r}"


def random_death(chance, lifetime_s):
    """Return a place to die at, or a time to be killed after."""
    if chance.random() < 0.4:
        return Death(), chance.uniform(0, 1.1 * lifetime_s)
    return Death(chance.choice(PLACES), chance.randint(1, 12)), None


def storm(kind, kills, seed, workers, root):
    """Train straight, then train under fire until so many kills have hit; return the number of runs that agree."""
    chance = random.Random(seed)
    began = time.monotonic()
    if end_of(start(kind, root / "straight", False, Death(), workers)) != 0:
        raise SystemExit((root / "straight.log").read_text())
    lifetime_s = time.monotonic() - began
    expected = outcome(root / "straight")
    hits, runs = 0, 0
    while hits < kills:
        runs += 1
        hits += _run_under_fire(kind, root / f"run{runs}", chance, lifetime_s, workers, limit=min(6, kills - hits))
        if wrong := list(differences(expected, outcome(root / f"run{runs}"))):
            raise SystemExit(f"{kind}: run {runs} (seed {seed}) ended differently:\n" + "\n".join(wrong[:20]))
        shutil.rmtree(root / f"run{runs}")
    return runs, hits


def _run_under_fire(kind, folder, chance, lifetime_s, workers, limit):
    """Train in one folder; kill and resume up to ``limit`` times, then let it end. Return the number of kills."""
    hits = 0
    while True:
        death, delay = random_death(chance, lifetime_s) if hits < limit else (Death(), None)
        pid = start(kind, folder, True, death, workers)
        if delay is not None:
            time.sleep(delay)
            os.kill(pid, signal.SIGKILL)
        status = end_of(pid)
        if status == 0:
            return hits
        if status != -signal.SIGKILL:
            raise SystemExit(folder.with_suffix(".log").read_text()[-3000:])
        hits += 1


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="kills of each trainer")
    parser.add_argument("--kind", choices=[*KINDS, "both"], default="both")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    sys.argv = sys.argv[:1]  # the trainers read the command line, too
    torch.set_num_threads(1)
    for kind in KINDS if options.kind == "both" else [options.kind]:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as root:
            runs, hits = storm(kind, options.kills, options.seed, options.workers, Path(root))
        print(f"{kind}: {hits} kills in {runs} runs, all ended with the same bits ({time.monotonic() - began:.0f} s)")


if __name__ == "__main__":
    main()
