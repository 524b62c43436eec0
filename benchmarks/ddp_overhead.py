"""What the engine costs per step on two processes, beside DistributedDataParallel loops written by hand.

    python benchmarks/ddp_overhead.py [--processes 2] [--steps 200] [--rounds 7] [--width 1100] [--out FILE]

It starts itself by torchrun (gloo, one thread a process). All contestants do the same work in the same processes, in
turn, for several rounds: the same model, the same batches in the same order, one update a batch; all end with the same
bits of weights, or the benchmark fails. "bare" only trains; "by hand" also keeps means on the device and every ten
steps reduces them over the processes and writes a line, TensorBoard and JSON, which is what the engine does.

Then each runs once more under a counter of collectives and store requests (see traffic.py): what the engine adds to
DistributedDataParallel is the difference to "bare".
"""

import argparse
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from overhead import LOG_EVERY, quiet
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from traffic import Traffic, store_requests

from vision3d_engine import EpochBasedTrainer
from vision3d_engine.core.cli import without_script_flags

TARGET = 1.03


class Loader:
    """The same batches again and again, others on each process, without any cost of loading."""

    def __init__(self, steps: int) -> None:
        generator = torch.Generator().manual_seed(dist.get_rank())
        draw = {"generator": generator}
        self.steps = steps
        self.batches = [{"x": torch.randn(16, 64, **draw), "y": torch.randint(0, 10, (16,), **draw)} for _ in range(16)]

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return (self.batches[i % len(self.batches)] for i in range(self.steps))


def network(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def results(model: nn.Module, batch: Any) -> dict[str, torch.Tensor]:
    """The work of every step: a loss and one more number."""
    logits = model(batch["x"])
    accuracy = (logits.detach().argmax(1) == batch["y"]).float().mean()
    return {"loss": cross_entropy(logits, batch["y"]), "accuracy": accuracy}


# --------------------------------------------------------------------------------------------- contestants


class Bare:
    """A loop that only trains."""

    def __init__(self, steps: int, width: int, folder: Path) -> None:
        self.loader = Loader(steps)
        self.model = DistributedDataParallel(network(width))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, fused=True)  # as the engine does

    def train(self) -> float:
        started = time.perf_counter()
        for number, batch in enumerate(self.loader, start=1):
            found = results(self.model, batch)
            found["loss"].backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.log(number, found)
        return time.perf_counter() - started

    def log(self, number: int, found: Any) -> None:
        pass

    def close(self) -> None:
        pass


class ByHand(Bare):
    """A careful loop: sums on the device; every ten steps one reduce, one line, TensorBoard and JSON."""

    def __init__(self, steps: int, width: int, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        super().__init__(steps, width, folder)
        self.sums = torch.zeros(2)
        self.writer = SummaryWriter(str(folder / "events")) if dist.get_rank() == 0 else None
        self.lines = (folder / "metrics.jsonl").open("w") if dist.get_rank() == 0 else None

    def log(self, number: int, found: Any) -> None:
        self.sums += torch.stack([value.detach() for value in found.values()])
        if number % LOG_EVERY:
            return
        dist.all_reduce(self.sums)
        means = dict(zip(found, (self.sums / LOG_EVERY / dist.get_world_size()).tolist(), strict=True))
        self.sums.zero_()
        if self.writer is None or self.lines is None:
            return
        for key, value in means.items():
            self.writer.add_scalar(f"train/{key}", value, number)
        self.lines.write(json.dumps({"step": number, **means}) + "\n")
        print(f"step {number}, " + ", ".join(f"{key}: {value:.3f}" for key, value in means.items()), file=sys.stderr)

    def close(self) -> None:
        if self.writer is not None and self.lines is not None:
            self.writer.close()
            self.lines.close()


class Engine(EpochBasedTrainer):
    """The same by the engine."""

    def __init__(self, steps: int, width: int, folder: Path) -> None:
        settings = {"max_epoch": 1, "log_steps": LOG_EVERY, "device": "cpu"}
        super().__init__({"exp": {"output_dir": str(folder)}, "trainer": settings})
        self.register_loader(Loader(steps), Loader(1))
        model = self.register_model(network(width))
        self.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.01))

    def train_step(self, epoch: int, iteration: int, data_dict: Any) -> Any:
        return {}, results(self.model, data_dict)

    def val_step(self, epoch: int, iteration: int, data_dict: Any) -> Any:
        return {}, {"ignored": 0.0}

    def before_train_epoch(self, epoch: int) -> None:
        self.began = time.perf_counter()

    def after_train_epoch(self, epoch: int, summary_dict: Any) -> None:
        self.seconds = time.perf_counter() - self.began

    def train(self) -> float:
        self.run()
        return self.seconds

    def close(self) -> None:
        pass


CONTESTANTS = {"bare": Bare, "by hand": ByHand, "engine": Engine}


# --------------------------------------------------------------------------------------------- measuring


def run(name: str, steps: int, width: int, at_update: Any = None) -> tuple[float, Any]:
    """Train by one contestant on all processes; return seconds a step and the contestant."""
    folder = [tempfile.mkdtemp() if dist.get_rank() == 0 else ""]
    dist.broadcast_object_list(folder)
    with quiet():
        contestant = CONTESTANTS[name](steps, width, Path(folder[0]))
        if at_update is not None:
            contestant.optimizer.register_step_pre_hook(at_update)
        dist.barrier()
        seconds = contestant.train()
        contestant.close()
    dist.barrier()
    shutil.rmtree(folder[0], ignore_errors=True)
    return seconds / steps, contestant


def check_same(weights: dict[str, list[torch.Tensor]]) -> None:
    """Make sure that all contestants have done the same work."""
    for name, values in weights.items():
        if not all(map(torch.equal, values, weights["bare"])):
            message = f"'{name}' did other work than 'bare': its weights differ"
            raise RuntimeError(message)


def measure(steps: int, rounds: int, width: int) -> dict[str, list[float]]:
    """Return milliseconds a step by contestant and round; the first round warms up and does not count."""
    found: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for number in range(rounds + 1):
        weights = {}
        names = list(CONTESTANTS)
        for name in names[number % 3 :] + names[: number % 3]:  # nobody always follows the same other one
            seconds, contestant = run(name, steps if number else min(steps, 20), width)
            weights[name] = [parameter.detach() for parameter in contestant.model.parameters()]
            if number:
                found[name].append(seconds * 1e3)
        check_same(weights)
    return found


def count(width: int, steps: int = 40) -> dict[str, Any]:
    """Return what each contestant sends beyond "bare", by the kind of step, and what "bare" sends.

    A step lasts from one update to the next, so the log line of step 10 lies in the difference of updates 10 and 11.
    """
    sent = {name: sent_by_step(name, steps, width) for name in CONTESTANTS}
    rows: dict[str, Any] = {"bare": by_kind(sent["bare"])}
    for name in ("by hand", "engine"):
        rows[name] = by_kind([(c - d, s - t) for (c, s), (d, t) in zip(sent[name], sent["bare"], strict=True)])
    return rows


def sent_by_step(name: str, steps: int, width: int) -> list[tuple[int, int]]:
    """Return collectives and store requests of the main thread from each update to the next."""
    marks: list[tuple[int, int]] = []
    with Traffic() as traffic, store_requests() as requests:
        run(name, steps, width, lambda *_: marks.append((traffic.total, requests["main"])))
    return [(c - d, s - t) for (d, t), (c, s) in itertools.pairwise(marks)]


def by_kind(sent: list[tuple[int, int]]) -> dict[str, list[int]]:
    """Return the different numbers that occurred in steps without and with a log line."""
    rows: dict[str, list[int]] = {}
    for column, what in enumerate(("collectives", "store requests")):
        for is_logged, when in ((False, "between log lines"), (True, "at a log line")):
            found = {counts[column] for i, counts in enumerate(sent, start=1) if (i % LOG_EVERY == 0) == is_logged}
            rows[f"{what} {when}"] = sorted(found)
    return rows


def work(options: argparse.Namespace) -> None:
    """One process of the benchmark."""
    without_script_flags()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = measure(options.steps, options.rounds, options.width)
    counted = count(options.width)
    if dist.get_rank() == 0:
        report(found, counted, options)
    dist.destroy_process_group()


def report(found: dict[str, list[float]], counted: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the tables and write the JSON file."""
    print(f"\n{dist.get_world_size()} processes, gloo, {options.steps} steps, medians over {options.rounds} rounds")
    print(f"  {'':10}{'ms/step':>10}{'fastest':>10}{'/ bare':>10}{'/ by hand':>12}")
    rows = {}
    for name, values in found.items():
        ratios = {base: statistics.median(map(_divide, values, found[base])) for base in ("bare", "by hand")}
        rows[name] = {"ms": statistics.median(values), "ratios": ratios, "rounds": values}
        print(f"  {name:10}{rows[name]['ms']:10.3f}{min(values):10.3f}{ratios['bare']:10.3f}{ratios['by hand']:12.3f}")
    print("\nsent in a step of the main thread; several numbers where steps differ")
    print(f"  {'':36}{'DDP itself':>12}{'+ by hand':>12}{'+ engine':>12}")
    for key, base in counted["bare"].items():
        print(f"  {key:36}{base!s:>12}{counted['by hand'][key]!s:>12}{counted['engine'][key]!s:>12}")
    ratio = rows["engine"]["ratios"]["by hand"]
    print(f"\nengine / by hand: {ratio:.3f} (target: at most {TARGET})")
    machine = {"machine": platform.platform(), "cores": os.cpu_count(), "torch": torch.__version__}
    written = {**machine, **vars(options), "out": str(options.out), "times": rows, "counts": counted}
    options.out.write_text(json.dumps(written, indent=1))
    print(f"written to {options.out}")


def _divide(a: float, b: float) -> float:
    return a / b


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--width", type=int, default=1100)
    parser.add_argument("--out", type=Path, default=Path("ddp_overhead.json"))
    options = parser.parse_args()
    if "RANK" in os.environ:
        work(options)
        return
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    sys.exit(subprocess.call([sys.executable, *launcher, *sys.argv], env=environment))


if __name__ == "__main__":
    main()
