"""What the engine sends and computes on process 0 of 8, 64 and 1,024, by torch's fake process group.

    python benchmarks/scale.py [--sizes 1 8 64 1024] [--steps 400] [--out FILE]

One process a size believes to be the first of so many. The group is torch's ("fake"): it sends nothing, returns at
once, and answers a gather with this process's own value once for every process. So the numbers and bytes of
collectives, the work on what they return, and the size of files are real; the time on a network, and waiting for slow
processes, are not in them. Two things are our own: gradients are exchanged by a communication hook, since what the fake
group returns to DistributedDataParallel has no result in torch 2.13, and the store is torch's HashStore.

A step lasts from one `before_train_step` to the next. Times are medians over steps, and of the step what a bare loop
with the same model in the same process takes is left out. Counting is a second run, since it costs time.
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
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.testing._internal.distributed.fake_pg
from overhead import network, quiet
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from traffic import Traffic, store_requests

from vision3d_engine import EpochBasedTrainer
from vision3d_engine.core.cli import without_script_flags
from vision3d_engine.core.settings import TrainerSettings
from vision3d_engine.distributed.coordination.agreement import StoreAgreement
from vision3d_engine.distributed.coordination.store import own_connection

LOG_EVERY, SAVE_EVERY = 10, 23
BATCH = {"x": torch.randn(16, 64), "y": torch.randint(0, 10, (16,))}
METRICS = 8
# Nobody else is there to give a sign of life.
PATIENT = {key: 1e6 for key in ("heartbeat_s", "collective_timeout_s") if key in TrainerSettings.model_fields}


class Loader:
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return (BATCH for _ in range(self.steps))


def exchange(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Exchange one bucket of gradients, as DistributedDataParallel does by itself."""
    dist.all_reduce(bucket.buffer(), group=group)
    future: torch.futures.Future = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


def exchange_by_hook() -> None:
    """Let every DistributedDataParallel, whoever makes it, exchange gradients by the hook."""
    construct = DistributedDataParallel.__init__

    def with_hook(self: Any, *args: Any, **options: Any) -> None:
        construct(self, *args, **options)
        self.register_comm_hook(dist.group.WORLD, exchange)

    DistributedDataParallel.__init__ = with_hook


def results(model: nn.Module, batch: Any) -> dict[str, torch.Tensor]:
    logits = model(batch["x"])
    found = {"loss": cross_entropy(logits, batch["y"])}
    return found | {f"metric{i}": logits.detach()[i, 0] for i in range(METRICS - 1)}


class Trainer(EpochBasedTrainer):
    """Notes a reading at every step's beginning, and around epochs."""

    waits = False
    file_size = 0

    def __init__(self, steps: int, folder: Path, read: Callable[[], Any], **options: Any) -> None:
        settings = {"max_epoch": 1, "log_steps": LOG_EVERY, "device": "cpu", **PATIENT, **options}
        super().__init__({"exp": {"output_dir": str(folder)}, "trainer": settings})
        self.read, self.steps, self.passes = read, [], {"start": read()}
        self.register_loader(Loader(steps), Loader(10))
        model = self.register_model(network())
        self.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.01))

    def before_train(self) -> None:
        self.passes["train"] = self.read()

    def before_train_step(self, epoch: int, iteration: int, data_dict: Any) -> None:
        self.steps.append(self.read())
        if self.waits:
            path = self.finish_saving()
            self.file_size = path.stat().st_size if path.exists() else 0

    def train_step(self, epoch: int, iteration: int, data_dict: Any) -> Any:
        return {}, results(self.model, data_dict)

    def before_val_epoch(self, epoch: int) -> None:
        self.passes["val"] = self.read()

    def val_step(self, epoch: int, iteration: int, data_dict: Any) -> Any:
        with torch.no_grad():
            return {}, results(self.model, data_dict)

    def after_val_epoch(self, epoch: int, summary_dict: Any) -> None:
        self.passes["val end"] = self.read()


def bare(steps: int) -> list[float]:
    """Return when each step of a bare loop began."""
    model: nn.Module = network()
    if dist.is_initialized():
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    began = []
    for batch in Loader(steps):
        began.append(time.perf_counter())
        results(model, batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    return began


# --------------------------------------------------------------------------------------------- one process


def kind_of(iteration: int) -> str:
    """What lies between the beginnings of a step and of the next one."""
    due = {LOG_EVERY: "log line", SAVE_EVERY: "checkpoint"}
    found = [name for every, name in due.items() if iteration % every == 0]
    return found[0] if len(found) == 1 else "both" if found else "step"


def by_kind(readings: list[Any], subtract: Callable[[Any, Any], Any]) -> dict[str, list[Any]]:
    """Return the differences from step to step, by kind; the first ten steps warm up."""
    rows: dict[str, list[Any]] = {}
    for iteration, (former, later) in enumerate(itertools.pairwise(readings), start=1):
        if iteration > 10:
            rows.setdefault(kind_of(iteration), []).append(subtract(later, former))
    return rows


def run(steps: int, read: Callable[[], Any], waits: bool = False, **options: Any) -> Trainer:
    """Train one epoch; with ``waits`` the next step waits until a checkpoint is written, and looks at its size."""
    folder = Path(tempfile.mkdtemp())
    with quiet():
        trainer = Trainer(steps, folder, read, **options)
        trainer.waits = waits
        trainer.run()
    shutil.rmtree(folder, ignore_errors=True)
    return trainer


def times(steps: int) -> dict[str, float]:
    """Return the engine's microseconds a step, and milliseconds a log line and a checkpoint."""
    bare(50)
    rounds = []
    for _ in range(3):
        pure = statistics.median(b - a for a, b in itertools.pairwise(bare(steps)))
        trainer = run(steps, time.perf_counter)
        found = medians(trainer)
        saving = medians(run(steps, time.perf_counter, waits=True, save_every=f"{SAVE_EVERY} iterations"))
        rounds.append(
            {
                "step, us": (found["step"] - pure) * 1e6,
                "log line, ms": (found["log line"] - found["step"]) * 1e3,
                "checkpoint, ms": (saving["checkpoint"] - saving["step"]) * 1e3,
                "start, ms": (trainer.passes["train"] - trainer.passes["start"]) * 1e3,
            }
        )
    return {key: statistics.median(row[key] for row in rounds) for key in rounds[0]}


def medians(trainer: Trainer) -> dict[str, float]:
    """Return the median seconds from one step's beginning to the next one's, by kind."""
    found = by_kind(trainer.steps, lambda later, former: later - former)
    return {kind: statistics.median(values) for kind, values in found.items()}


def counts(steps: int) -> dict[str, Any]:
    """Return collectives and bytes by kind of step, beyond those of a plain step, and of passes."""
    with Traffic() as traffic, store_requests() as requests:
        began = time.perf_counter()

        def read() -> Counter[str]:
            return Counter(traffic.copy()) + Counter({"store": requests["main"]})

        trainer = run(steps, read, waits=True, save_every=f"{SAVE_EVERY} iterations")
        seconds = time.perf_counter() - began
    rows: dict[str, Any] = {kind: least(values) for kind, values in by_kind(trainer.steps, minus).items()}
    for kind in ("log line", "checkpoint"):
        rows[kind] = minus(rows[kind], rows["step"])
    passes = trainer.passes
    rows["start"] = minus(passes["train"], passes["start"])
    rows["epoch"] = minus(trainer.steps[0], passes["train"])
    rows["validation"] = minus(passes["val end"], passes["val"])
    threads = {name: count / seconds for name, count in requests.items() if name != "main"}
    return {"traffic": rows, "file": trainer.file_size, "store requests a second by thread": threads}


def minus(later: dict[str, int], former: dict[str, int]) -> dict[str, int]:
    return {key: later.get(key, 0) - former.get(key, 0) for key in ("collectives", "sent", "received", "store")}


def least(values: list[dict[str, int]]) -> dict[str, int]:
    """The most frequent of several counts, since keys are agreed on once and buckets rebuilt once."""
    return dict(Counter(tuple(sorted(value.items())) for value in values).most_common(1)[0][0])


def agreement() -> dict[str, int]:
    """Return how many store requests an agreement costs this process, as one of many and as the last to be heard."""
    size, found = dist.get_world_size(), {}
    for role, others in (("one of many", 0), ("last", size - 1)):
        agreed = StoreAgreement(0, size, role)
        for rank in range(1, size):
            agreed._store.set(f"0/next/{rank}", "3")  # noqa: SLF001  plays the others
        agreed._store.add("0/posted", others)  # noqa: SLF001
        if role == "one of many":
            agreed._store.set("0/due", "3")  # noqa: SLF001
        with store_requests() as requests:
            agreed.request("save")
            with agreed.listening(print):
                while agreed.sync_point() is None:
                    time.sleep(0.01)
        found[role] = sum(requests.values())
    return found


def work(size: int, steps: int) -> None:
    """Measure as process 0 of so many, and print the rows as JSON."""
    without_script_flags()
    torch.set_num_threads(1)
    if size > 1:
        exchange_by_hook()
        dist.init_process_group("fake", store=dist.HashStore(), rank=0, world_size=size)
        for rank in range(size):  # where the others are, which they do not tell
            own_connection("launch").set(f"place/{rank}", json.dumps((f"node{rank}", 0)))
    found = {"times": times(steps), **counts(min(steps, 120))}
    found["requests to agree"] = agreement() if size > 1 else {"one of many": 0, "last": 0}
    print("ROW" + json.dumps(found))
    os._exit(0)  # the fake group has nothing to take leave of


# --------------------------------------------------------------------------------------------- the table


def measure(size: int, steps: int) -> dict[str, Any]:
    """Measure one size in a process of its own."""
    words = [sys.executable, __file__, "--as-one-of", str(size), "--steps", str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.partition("ROW")[2])


def lines_of(found: dict[int, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield the rows of the table: what, and a figure for each number of processes."""
    rows = list(found.values())
    for kind in ("step", "log line", "checkpoint", "start", "epoch", "validation"):
        traffic = [row["traffic"][kind] for row in rows]
        yield f"{kind}: collectives", [str(counts["collectives"]) for counts in traffic]
        yield f"{kind}: bytes sent / received", [f"{counts['sent']:,} / {counts['received']:,}" for counts in traffic]
        yield f"{kind}: store requests, main thread", [str(counts["store"]) for counts in traffic]
    for key in rows[0]["times"]:
        yield f"time: {key}", [f"{row['times'][key]:.2f}" for row in rows]
    yield "checkpoint.pth in mid-epoch, kB", [f"{row['file'] / 1e3:,.0f}" for row in rows]
    yield (
        "store requests a second, threads",
        [f"{sum(row['store requests a second by thread'].values()):.1f}" for row in rows],
    )
    yield (
        "store requests to agree (of the last)",
        ["{one of many} ({last})".format(**row["requests to agree"]) for row in rows],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 8, 64, 1024])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("scale.json"))
    parser.add_argument("--as-one-of", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_one_of:
        work(options.as_one_of, options.steps)
    found = {size: measure(size, options.steps) for size in options.sizes}
    print(f"  {'processes':38}" + "".join(f"{size:>22,}" for size in found))
    for name, figures in lines_of(found):
        print(f"  {name:38}" + "".join(f"{figure:>22}" for figure in figures))
    sent = {json.dumps(row["traffic"]["step"]) for size, row in found.items() if size > 1}
    print("what a step sends does not depend on the number" if len(sent) < 2 else f"STEPS DIFFER: {sent}")
    machine = {"machine": platform.platform(), "cores": os.cpu_count(), "torch": torch.__version__}
    options.out.write_text(json.dumps({**machine, "steps": options.steps, "sizes": found}, indent=1))
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
