"""What the engine costs per step, beside a bare loop, a careful hand-written loop and other engines.

    python benchmarks/overhead.py [--steps 2000] [--rounds 5] [--out overhead.json]

All contestants do the same work in one process, in turn, for several rounds; figures are medians over rounds, and the
cost of an engine is the median of its difference to the bare loop of the same round. Peers take part when installed
(``pip install -e ".[bench]"``, best in an environment of their own). One thread, since the tensors are tiny.

The cost of a phase is what a step saves when that phase is left out; what they leave is the loop, checks and counters.
"""

import argparse
import contextlib
import json
import logging
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peers
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from vision3d_engine import EpochBasedTrainer, IterBasedTrainer, SingleTester
from vision3d_engine.core.seeding import StepSeeds
from vision3d_engine.logs.logger import Logger
from vision3d_engine.loop.train_log import TrainLog
from vision3d_engine.metrics.running_means import RunningMeans
from vision3d_engine.writers.metric_writers import MetricWriters

LOG_EVERY = 10
BATCHES = [{"x": torch.randn(16, 64), "y": torch.randint(0, 10, (16,))} for _ in range(64)]


class Loader:
    """The same batches again and again, without any cost of loading."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return (BATCHES[i % len(BATCHES)] for i in range(self.steps))


def network(width: int = 128) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def results(model: nn.Module, batch: Any, metrics: int) -> dict[str, torch.Tensor]:
    """The work of every step: a loss and ``metrics - 1`` more numbers."""
    logits = model(batch["x"])
    found = {"loss": cross_entropy(logits, batch["y"])}
    found["accuracy"] = (logits.detach().argmax(1) == batch["y"]).float().mean()
    for index in range(metrics - 2):
        found[f"metric{index}"] = logits.detach()[index % 16, 0]
    return found


# --------------------------------------------------------------------------------------------- contestants


def bare(steps: int, metrics: int, folder: Path, width: int = 128) -> float:
    """A loop without any logging."""
    model = network(width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    started = time.perf_counter()
    for batch in Loader(steps):
        found = results(model, batch, metrics)
        found["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - started


class HandLog:
    """The log of a careful loop: sums on the device, and every 10 steps one line, TensorBoard and JSON."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer, self.lines = SummaryWriter(str(folder / "events")), (folder / "metrics.jsonl").open("w")
        self.sums: dict[str, torch.Tensor] = {}

    def add(self, step: int, found: dict[str, torch.Tensor], also: Callable[[], dict[str, float]] = dict) -> None:
        """Take in the numbers of a step; ``also`` returns more when a line is due."""
        sums = self.sums
        for key, value in found.items():
            sums[key] = sums[key] + value.detach() if key in sums else value.detach().clone()
        if step % LOG_EVERY == 0:
            means = {key: value.item() / LOG_EVERY for key, value in sums.items()} | also()
            for key, value in means.items():
                self.writer.add_scalar(f"train/{key}", value, step)
            self.lines.write(json.dumps({"step": step, **means}) + "\n")
            print(f"step {step}, " + ", ".join(f"{k}: {v:.3f}" for k, v in means.items()), file=sys.stderr)
            self.sums = {}

    def close(self) -> None:
        self.writer.close()
        self.lines.close()


def by_hand(steps: int, metrics: int, folder: Path, width: int = 128) -> float:
    """A careful loop with the log of `HandLog`."""
    model = network(width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    log = HandLog(folder)
    started = time.perf_counter()
    for step, batch in enumerate(Loader(steps), start=1):
        found = results(model, batch, metrics)
        found["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        log.add(step, found)
    elapsed = time.perf_counter() - started
    log.close()
    return elapsed


class _Steps:
    """The engine's side of the same work; notes when its passes begin and end."""

    model: Any
    metrics = 2

    def train_step(self, epoch: int, iteration: int, data_dict: Any) -> Any:
        return {}, results(self.model, data_dict, self.metrics)

    def val_step(self, epoch: int, iteration: int, data_dict: Any) -> Any:
        return {}, results(self.model, data_dict, self.metrics)

    def before_train_epoch(self, epoch: int) -> None:
        self.began = time.perf_counter()

    def after_train_epoch(self, epoch: int, summary_dict: Any) -> None:
        self.train_s = time.perf_counter() - self.began

    def before_val_epoch(self, epoch: int) -> None:
        self.began = time.perf_counter()

    def after_val_epoch(self, epoch: int, summary_dict: Any) -> None:
        self.val_s = time.perf_counter() - self.began


class EpochTrainer(_Steps, EpochBasedTrainer):
    pass


class IterTrainer(_Steps, IterBasedTrainer):
    pass


class WeighingTrainer(EpochTrainer):
    """Says what each result weighs, as one does whose batches hold varying numbers of points."""

    def metric_weight(self, data_dict: Any, output_dict: Any, result_dict: Any) -> Any:
        return len(data_dict["y"])


def train(kind: Any, steps: int, metrics: int, folder: Path, width: int = 128) -> Any:
    """Run one of the engine's trainers and return it."""
    settings = {"max_epoch": 1, "log_steps": LOG_EVERY, "device": "cpu"}
    trainer = kind({"exp": {"output_dir": str(folder)}, "trainer": settings})
    trainer.metrics = metrics
    trainer.register_loader(Loader(steps), Loader(steps))
    model = trainer.register_model(network(width))
    trainer.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.01))
    trainer.run()
    return trainer


def engine_epoch(steps: int, metrics: int, folder: Path, width: int = 128) -> float:
    return train(EpochTrainer, steps, metrics, folder, width).train_s


def engine_iter(steps: int, metrics: int, folder: Path, width: int = 128) -> float:
    return train(IterTrainer, steps, metrics, folder, width).train_s


def engine_weighing(steps: int, metrics: int, folder: Path, width: int = 128) -> float:
    return train(WeighingTrainer, steps, metrics, folder, width).train_s


def engine_val(steps: int, metrics: int, folder: Path) -> float:
    return train(EpochTrainer, steps, metrics, folder).val_s


class Tester(SingleTester):
    metrics = 2

    def test_step(self, iteration: int, data_dict: Any) -> Any:
        return results(self.model, data_dict, self.metrics)

    def eval_step(self, iteration: int, data_dict: Any, output_dict: Any) -> Any:
        return output_dict

    def before_test_epoch(self) -> None:
        self.began = time.perf_counter()

    def after_test_epoch(self, summary_dict: Any) -> None:
        self.test_s = time.perf_counter() - self.began


def engine_test(steps: int, metrics: int, folder: Path) -> float:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"model": network().state_dict()}, folder / "weights.pth")
    settings = {"log_steps": LOG_EVERY, "device": "cpu"}
    tester = Tester({"exp": {"output_dir": str(folder)}, "trainer": settings}, str(folder / "weights.pth"))
    tester.register_loader(Loader(steps))
    tester.register_model(network())
    tester.run()
    return tester.test_s


def bare_no_grad(steps: int, metrics: int, folder: Path) -> float:
    """A validation loop without any bookkeeping."""
    model = network().eval()
    started = time.perf_counter()
    with torch.no_grad():
        for batch in Loader(steps):
            results(model, batch, metrics)
    return time.perf_counter() - started


def nothing(*args: Any, **options: Any) -> None:
    pass


def without(*parts: tuple[Any, str], instead: Any = nothing) -> Callable[..., float]:
    """The engine with some of its methods doing nothing, or something else instead."""

    def run(steps: int, metrics: int, folder: Path) -> float:
        kept = [(owner, name, getattr(owner, name)) for owner, name in parts]
        for owner, name in parts:
            setattr(owner, name, instead)
        try:
            return engine_epoch(steps, metrics, folder)
        finally:
            for owner, name, method in kept:
                setattr(owner, name, method)

    return run


PHASES = {
    "seeding each step": without((StepSeeds, "seed")),
    "log line, written": without((MetricWriters, "scalars"), (Logger, "line")),
    "log line, all of it": without((TrainLog, "write")),
    "meters and log line": without((TrainLog, "write"), (RunningMeans, "update")),
}


def start_up(rounds: int) -> dict[str, float]:
    """Milliseconds of importing the engine beyond torch, and from ``run()`` to the first step."""
    imported = "import time, torch; a = time.perf_counter(); import vision3d_engine; print(time.perf_counter() - a)"
    first = (
        "import sys, tempfile, time; sys.argv = ['train.py']; import overhead as o\n"
        "class T(o.EpochTrainer):\n"
        "    def before_train_step(self, *args):\n"
        "        print(time.perf_counter() - self.a), sys.stdout.flush(), o.os._exit(0)\n"
        "t = T({'exp': {'output_dir': tempfile.mkdtemp()}, 'trainer': {'device': 'cpu'}})\n"
        "t.register_loader(o.Loader(9), o.Loader(9)); m = t.register_model(o.network())\n"
        "t.register_optimizer(o.torch.optim.SGD(m.parameters(), lr=0.01)); t.a = time.perf_counter(); t.run()"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = str(Path(__file__).parent)
    found = {}
    for name, code in (("import beyond torch", imported), ("run() to the first step", first)):
        command = [sys.executable, "-c", code]
        runs = [
            subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            for _ in range(rounds + 1)
        ]
        found[name] = statistics.median(float(run.stdout) for run in runs[1:]) * 1e3
    return found


# --------------------------------------------------------------------------------------------- measuring

Contestant = Callable[..., float]


def measure(
    contestants: dict[str, Contestant], steps: int, rounds: int, metrics: int, **options: Any
) -> dict[str, list[float]]:
    """Return microseconds a step for every contestant and round; the first round warms up and does not count."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, contestant in contestants.items():
            folder = Path(tempfile.mkdtemp())
            with quiet():
                seconds = contestant(steps if number else min(steps, 200), metrics, folder, **options)
            shutil.rmtree(folder, ignore_errors=True)
            if number:
                found[name].append(seconds / steps * 1e6)
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let everybody write log lines, but into the void."""
    with (
        open(os.devnull, "w") as void,  # noqa: PTH123  not a StringIO, which would grow
        contextlib.redirect_stderr(void),
        contextlib.redirect_stdout(void),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        yield
        logging.disable(logging.NOTSET)


def table(title: str, found: dict[str, list[float]], base: str) -> dict[str, Any]:
    """Print a table and return its rows: median, cost over the base, ratio to it."""
    print(f"\n{title}\n  {'':24}{'us/step':>10}{'over ' + base:>16}{'ratio':>8}")
    rows = {}
    for name, values in found.items():
        cost = statistics.median(a - b for a, b in zip(values, found[base], strict=True))
        ratio = statistics.median(a / b for a, b in zip(values, found[base], strict=True))
        rows[name] = {"us": statistics.median(values), "over": cost, "ratio": ratio, "rounds": values}
        print(f"  {name:24}{rows[name]['us']:10.1f}{cost:16.1f}{ratio:8.3f}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("overhead.json"))
    options = parser.parse_args()
    sys.argv = sys.argv[:1]
    torch.set_num_threads(1)
    ours = {"bare": bare, "by hand": by_hand, "engine, epoch": engine_epoch, "engine, iter": engine_iter}
    steps, rounds = options.steps, options.rounds
    report = {"machine": platform.platform(), "cores": os.cpu_count(), "torch": torch.__version__, "steps": steps}
    contestants = ours | peers.installed(network, results, Loader, LOG_EVERY)
    report["train2"] = table("training, 2 metrics", measure(contestants, steps, rounds, 2), "bare")
    report["train20"] = table("training, 20 metrics", measure(ours, steps, rounds, 20), "bare")
    passes = {"bare": bare_no_grad, "validation": engine_val, "test": engine_test}
    report["val"] = table("validation and test", measure(passes, steps, rounds, 2), "bare")
    large = {name: ours[name] for name in ("bare", "engine, epoch")}
    report["large"] = table("a step of 5 ms or more", measure(large, 200, rounds, 2, width=1800), "bare")
    found = measure({"whole": engine_epoch} | PHASES, steps, rounds, 2)
    weighing = {"engine, epoch": engine_epoch, "with metric_weight": engine_weighing}
    report["weights"] = table("metric_weight", measure(weighing, steps, rounds, 2), "engine, epoch")
    report["phases"] = {
        name: statistics.median(a - b for a, b in zip(found["whole"], values, strict=True))
        for name, values in found.items()
    }
    print("\nphases: us a step saved without ...")
    print("\n".join(f"  {name:24}{value:10.1f}" for name, value in report["phases"].items() if name != "whole"))
    report["start"] = start_up(rounds)
    print("\nstart-up, ms\n" + "\n".join(f"  {name:24}{value:10.1f}" for name, value in report["start"].items()))
    options.out.write_text(json.dumps(report, indent=1))
    print(f"\nwritten to {options.out}")


if __name__ == "__main__":
    main()
