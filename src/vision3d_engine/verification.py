"""Prove for a user's own script that a kill and a resume change no bit: ``vision3d-engine verify-resume``."""

import hashlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from vision3d_engine.core import cli
from vision3d_engine.core.compare import as_bytes
from vision3d_engine.core.errors import EngineError
from vision3d_engine.core.seeding import host_states
from vision3d_engine.core.tree import leaves
from vision3d_engine.loop.hooks import PROBES, Hook

_MAX_SAMPLES = 256


def verify_resume(script: Path, arguments: Sequence[str], steps: int) -> str:
    """Run a training script straight, and again with a kill and a resume in the middle; compare every step after it.

    Each run is a process of its own, with a run folder of its own in a temporary place; the script sees its usual
    command line. Saved is every ``steps // 3`` steps, killed (SIGKILL) after two thirds.

    Args:
        script: the training script.
        arguments: its command line.
        steps: training steps to compare.

    Returns:
        A sentence on what was compared.

    Raises:
        EngineError: naming the first step, and what differs there: batch and sample, generator, loss or weights.
    """
    with tempfile.TemporaryDirectory() as name:
        plan = {"steps": steps, "save_every": max(steps // 3, 1), "kill_at": None, "resume": False}
        straight = _run(script, arguments, Path(name) / "straight", plan)
        kill_at = max(2 * len(straight) // 3, 1)
        plan |= {"save_every": max(kill_at // 2, 1)}
        _run(script, arguments, Path(name) / "killed", plan | {"kill_at": kill_at})
        resumed = _run(script, arguments, Path(name) / "killed", plan | {"resume": True})
    _compare(straight, resumed)
    return (
        f"the same bits: steps {min(resumed)} to {max(resumed)} of {script.name}, resumed after a kill at step "
        f"{kill_at}, have the batches, random numbers, losses and weights of the run that was not interrupted"
    )


def _run(script: Path, arguments: Sequence[str], folder: Path, plan: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Run the script in a process of its own and return what it has noted of each step."""
    trace = folder.with_name(f"{folder.name}-{plan['resume']}.jsonl")
    order = json.dumps(plan | {"folder": str(folder), "trace": str(trace), "script": str(script)})
    command = [sys.executable, "-c", "from vision3d_engine.verification import act; act()", order, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  the user's own script
    killed = plan["kill_at"] is not None and done.returncode == -signal.SIGKILL
    notes = [json.loads(line) for line in trace.read_text().splitlines()] if trace.exists() else []
    if (done.returncode != 0 and not killed) or not notes:
        message = f"{script} ended with {done.returncode} after {len(notes)} training steps:\n{done.stderr[-3000:]}"
        raise EngineError(message)
    return {note["step"]: note for note in notes}


def act() -> None:
    """Run a script as told by the first word of the command line; this is the child's side."""
    order, *arguments = cli.own_words()
    plan = json.loads(order)
    cli.pretend(plan["script"], arguments)
    trainer = {"save_every": f"{plan['save_every']} iterations", "async_save": False, "overwrite": True}
    cli.force(
        exp={"output_dir": plan["folder"], "checkpoint_dir": None, "log_dir": None, "event_dir": None},
        trainer=trainer | {"resume": plan["resume"]},
    )
    PROBES.append(lambda: _Probe(plan))
    sys.path.insert(0, str(Path(plan["script"]).absolute().parent))
    runpy.run_path(plan["script"], run_name="__main__")


class _Probe(Hook):
    """Notes the bits of every training step, and ends the process where the plan says."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan
        self._note: dict[str, Any] = {}

    def before_train_step(self, epoch: int, iteration: int, data_dict: Any) -> None:
        """Note the batch, and the state of the generators."""
        self._note = {"place": f"epoch {epoch}, iteration {iteration}", "batch": dict(_digests(data_dict))}
        self._note["random"] = {name: _digest(state) for name, state in host_states().items()}

    def after_train_step(self, epoch: int, iteration: int, data_dict: Any, output_dict: Any, result_dict: Any) -> None:
        """Note loss and weights."""
        weights = {name: _digest(as_bytes(value)) for name, value in self.owner.model.state_dict().items()}
        note = {"step": self.owner.total_steps, "loss": float(result_dict["loss"]), "weights": weights}
        with Path(self._plan["trace"]).open("a", encoding="utf-8") as file:
            file.write(json.dumps(self._note | note) + "\n")
        if self.owner.total_steps == self._plan["kill_at"]:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.owner.total_steps >= self._plan["steps"]:
            os._exit(0)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _digests(batch: Any) -> Iterator[tuple[str, Any]]:
    """Yield a digest for every entry of a batch; tensors with few enough rows get one a row, which names the sample."""
    for path, leaf in leaves(batch):
        if isinstance(leaf, torch.Tensor):
            rows = leaf if leaf.ndim > 0 and len(leaf) <= _MAX_SAMPLES else leaf.unsqueeze(0)
            yield path, [_digest(as_bytes(row)) for row in rows]
        else:
            yield path, _digest(repr(leaf).encode())


def _compare(straight: dict[int, dict[str, Any]], resumed: dict[int, dict[str, Any]]) -> None:
    """Raise for the first step, and in it for the first thing, that differs; causes come before effects."""
    for step in sorted(resumed):
        expected, found = straight.get(step, {"place": "never reached"}), resumed[step]
        if expected["place"] != found["place"]:
            message = f"step {step} is another one: {expected['place']} straight, {found['place']} resumed"
            raise EngineError(message)
        for what in ("batch", "random", "loss", "weights"):
            if expected[what] != found[what]:
                message = f"not the same bits at step {step} ({found['place']}): {_named(what, expected, found)}"
                raise EngineError(message)


def _named(what: str, expected: dict[str, Any], found: dict[str, Any]) -> str:
    """Say what differs in a step, and what to look at."""
    a, b = expected[what], found[what]
    if what == "loss":
        return f"the loss is {a} straight and {b} resumed, with the same batch and random numbers. {_KERNELS}"
    keys = [key for key in a if a[key] != b.get(key)] or sorted(b.keys() - a.keys())
    if what == "weights":
        return f"the weights {keys[:3]} differ after the same loss. {_STATES}"
    if what == "random":
        return f"the generator of {keys[0]} is in another state. A hook draws from it between seeding and step"
    samples = [i for i, pair in enumerate(zip(a[keys[0]], b.get(keys[0], ()), strict=False)) if pair[0] != pair[1]]
    return f"the batch differs in {keys[0]}, sample {samples[:3]}. {_DATA}"


_KERNELS = "Some kernel is not deterministic (torch.use_deterministic_algorithms), or something else has a state"
_STATES = "The optimizer or an object that is not registered has a state: self.register_state(name, object)"
_DATA = "Check the data set with vision3d_engine.check_determinism(dataset), and build loaders with build_dataloader"
