"""What clipping, an average of the weights and two parameter groups cost, beside a loop by hand and other engines.

    python benchmarks/updates.py [--steps 1500] [--rounds 5] [--out updates.json]

The network, the log every 10 steps and the way of measuring are those of ``overhead.py``. Everybody trains by AdamW
with two groups (biases without decay), clips the norm of the gradients, averages the weights after each update, and
logs losses and norm. A second table says what each feature costs by itself.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from overhead import LOG_EVERY, EpochTrainer, HandLog, Loader, measure, network, results, table
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

CLIP, DECAY = 1.0, 0.999


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """Biases are not decayed."""
    parameters = dict(model.named_parameters())
    names = [name for name in parameters if name.endswith("bias")]
    rest = [parameter for name, parameter in parameters.items() if name not in names]
    return [{"params": rest}, {"params": [parameters[name] for name in names], "weight_decay": 0.0}]


def adamw(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups(model), lr=1e-3, **options)


def by_hand(steps: int, metrics: int, folder: Path) -> float:
    """A careful loop: fused kernels, no wait between log lines, the average by torch's function on lists."""
    model = network()
    optimizer, parameters = adamw(model, fused=True), list(model.parameters())
    shadows, average = [parameter.detach().clone() for parameter in parameters], get_ema_multi_avg_fn(DECAY)
    log = HandLog(folder)
    started = time.perf_counter()
    for step, batch in enumerate(Loader(steps), start=1):
        found = results(model, batch, metrics)
        found["loss"].backward()
        norm = get_total_norm([parameter.grad for parameter in parameters])
        clip_grads_with_norm_(parameters, CLIP, norm)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            average(shadows, parameters, step)
        log.add(step, found | {"grad_norm": norm}, lambda: rates(optimizer))
    elapsed = time.perf_counter() - started
    log.close()
    return elapsed


def rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    return {f"lr/{number}": group["lr"] for number, group in enumerate(optimizer.param_groups)}


def engine(**settings: Any) -> Callable[..., float]:
    """The engine with some of the features."""

    def run(steps: int, metrics: int, folder: Path) -> float:
        base = {"max_epoch": 1, "log_steps": LOG_EVERY, "device": "cpu"}
        trainer = EpochTrainer({"exp": {"output_dir": str(folder)}, "trainer": base | settings})
        trainer.metrics = metrics
        trainer.register_loader(Loader(steps), Loader(2))
        trainer.register_optimizer(adamw(trainer.register_model(network())))
        trainer.run()
        return trainer.train_s

    return run


def lightning(steps: int, metrics: int, folder: Path) -> float:
    """Lightning's own settings for these."""
    import lightning as pl
    from lightning.pytorch.callbacks import EMAWeightAveraging
    from lightning.pytorch.loggers import TensorBoardLogger

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def training_step(self, batch: Any, index: int) -> Any:
            found = results(self.net, batch, metrics)
            self.log_dict({key: value.detach() for key, value in found.items()}, batch_size=16)
            return found["loss"]

        def configure_optimizers(self) -> Any:
            return adamw(self, fused=True)

        def on_train_epoch_start(self) -> None:
            self.began = time.perf_counter()

        def on_train_epoch_end(self) -> None:
            self.train_s = time.perf_counter() - self.began

    module = Module()
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=TensorBoardLogger(folder),
        log_every_n_steps=LOG_EVERY,
        gradient_clip_val=CLIP,
        callbacks=[EMAWeightAveraging(decay=DECAY)],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, Loader(steps))
    return module.train_s


def accelerate(steps: int, metrics: int, folder: Path) -> float:
    """Accelerate's clipping; the average is torch's model, as its examples have it."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=str(folder))
    accelerator.init_trackers("run")
    model = network()
    model, optimizer = accelerator.prepare(model, adamw(model, fused=True))
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    started = time.perf_counter()
    for number, batch in enumerate(Loader(steps), start=1):
        with accelerator.accumulate(model):
            found = results(model, batch, metrics)
            accelerator.backward(found["loss"])
            found["grad_norm"] = accelerator.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
            averaged.update_parameters(model)
        if number % LOG_EVERY == 0:
            accelerator.log({key: value.item() for key, value in found.items()}, step=number)
    elapsed = time.perf_counter() - started
    accelerator.end_training()
    return elapsed


ALL = {"clip_grad_norm": CLIP, "ema_decay": DECAY, "ema_warmup": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("updates.json"))
    options = parser.parse_args()
    sys.argv = sys.argv[:1]
    torch.set_num_threads(1)
    peers = {name: run for name, run in (("lightning", lightning), ("accelerate", accelerate)) if find_spec(name)}
    report: dict[str, Any] = {"machine": platform.platform(), "cores": os.cpu_count(), "torch": torch.__version__}
    together = {"by hand": by_hand, "engine, all of it": engine(**ALL), **peers}
    report["together"] = table("together", measure(together, options.steps, options.rounds, 2), "by hand")
    single = {
        "none": engine(),
        "clip_grad_norm": engine(clip_grad_norm=CLIP),
        "clip_grad_value": engine(clip_grad_value=CLIP),
        "ema_decay": engine(ema_decay=DECAY),
        "bf16": engine(precision="bf16"),
        "fp16": engine(precision="fp16"),
    }
    report["single"] = table("one by one", measure(single, options.steps, options.rounds, 2), "none")
    options.out.write_text(json.dumps(report, indent=1))
    print(f"\nwritten to {options.out}")


if __name__ == "__main__":
    main()
