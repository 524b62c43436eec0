"""Whether a long run stays as fast and as small as it began.

    python benchmarks/memory.py [--steps 200000]

One epoch of so many tiny steps, with a log line every 10: resident memory and steps per second, tenth by tenth.
"""

import argparse
import json
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import overhead
import torch


class Long(overhead.EpochTrainer):
    """Notes memory and time at each tenth of the epoch."""

    def before_train_epoch(self, epoch: int) -> None:
        super().before_train_epoch(epoch)
        self.notes = [(time.perf_counter(), memory_mb())]

    def after_train_step(self, epoch: int, iteration: int, data_dict: Any, output_dict: Any, result_dict: Any) -> None:
        if iteration % (len(self.train_loader) // 10) == 0:
            self.notes.append((time.perf_counter(), memory_mb()))


def memory_mb() -> float:
    """Return the resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200_000)
    steps = parser.parse_args().steps
    overhead.sys.argv = overhead.sys.argv[:1]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, overhead.quiet():
        notes = overhead.train(Long, steps, 2, Path(folder)).notes
    rates = [steps / 10 / (after[0] - before[0]) for before, after in pairwise(notes)]
    sizes = [round(size, 2) for _, size in notes]
    print("steps/s by tenth  " + " ".join(f"{rate:.0f}" for rate in rates))
    print("memory, MB        " + " ".join(f"{size:.2f}" for size in sizes))
    growth = sizes[-1] - sizes[1]
    print(
        f"growth after the first tenth: {growth:.2f} MB; last tenth at {rates[-1] / rates[0]:.3f} of the first's speed"
    )
    print(json.dumps({"steps": steps, "rates": rates, "memory_mb": sizes, "growth_mb": growth}))


if __name__ == "__main__":
    main()
