"""The same work in other engines, each in its documented way: two metrics, TensorBoard every 10 steps."""

import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch


def installed(network: Any, results: Any, loader: Any, log_every: int) -> dict[str, Callable[..., float]]:
    """Return the peers that are installed, by name."""
    known = {"lightning": _lightning, "ignite": _ignite, "accelerate": _accelerate, "mmengine": _mmengine}
    here = {name: make for name, make in known.items() if find_spec(name) is not None}
    return {name: make(network, results, loader, log_every) for name, make in here.items()}


def _lightning(network: Any, results: Any, loader: Any, log_every: int) -> Callable[..., float]:
    import lightning
    from lightning.pytorch.loggers import TensorBoardLogger

    class Module(lightning.LightningModule):
        def __init__(self, metrics: int) -> None:
            super().__init__()
            self.net, self.metrics = network(), metrics

        def training_step(self, batch: Any, index: int) -> Any:
            found = results(self.net, batch, self.metrics)
            self.log_dict({key: value.detach() for key, value in found.items()}, batch_size=16)
            return found["loss"]

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

        def on_train_epoch_start(self) -> None:
            self.began = time.perf_counter()

        def on_train_epoch_end(self) -> None:
            self.train_s = time.perf_counter() - self.began

    def run(steps: int, metrics: int, folder: Path) -> float:
        module = Module(metrics)
        trainer = lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=TensorBoardLogger(folder),
            log_every_n_steps=log_every,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(module, loader(steps))
        return module.train_s

    return run


def _ignite(network: Any, results: Any, loader: Any, log_every: int) -> Callable[..., float]:
    from ignite.engine import Engine, Events
    from ignite.handlers.tensorboard_logger import TensorboardLogger
    from ignite.metrics import RunningAverage

    def run(steps: int, metrics: int, folder: Path) -> float:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

        def step(engine: Any, batch: Any) -> Any:
            found = results(model, batch, metrics)
            found["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
            return {key: value.detach() for key, value in found.items()}

        engine = Engine(step)
        for key in ("loss", "accuracy"):
            RunningAverage(output_transform=lambda output, key=key: output[key]).attach(engine, key)
        logger = TensorboardLogger(str(folder))
        every = Events.ITERATION_COMPLETED(every=log_every)
        logger.attach_output_handler(engine, every, tag="train", metric_names=["loss", "accuracy"])
        started = time.perf_counter()
        engine.run(loader(steps), max_epochs=1)
        elapsed = time.perf_counter() - started
        logger.close()
        return elapsed

    return run


def _accelerate(network: Any, results: Any, loader: Any, log_every: int) -> Callable[..., float]:
    from accelerate import Accelerator

    def run(steps: int, metrics: int, folder: Path) -> float:
        accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=str(folder))
        accelerator.init_trackers("run")
        model = network()
        model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.01))
        started = time.perf_counter()
        for number, batch in enumerate(loader(steps), start=1):
            with accelerator.accumulate(model):
                found = results(model, batch, metrics)
                accelerator.backward(found["loss"])
                optimizer.step()
                optimizer.zero_grad()
            if number % log_every == 0:
                accelerator.log({key: value.item() for key, value in found.items()}, step=number)
        elapsed = time.perf_counter() - started
        accelerator.end_training()
        return elapsed

    return run


def _mmengine(network: Any, results: Any, loader: Any, log_every: int) -> Callable[..., float]:
    from mmengine.hooks import Hook
    from mmengine.model import BaseModel
    from mmengine.runner import Runner
    from torch.utils.data import DataLoader

    class Model(BaseModel):
        def __init__(self, metrics: int) -> None:
            super().__init__()
            self.net, self.metrics = network(), metrics

        def forward(self, x: Any, y: Any, mode: str = "loss") -> Any:
            return results(self.net, {"x": x, "y": y}, self.metrics)

        def parse_losses(self, losses: Any) -> Any:
            return losses["loss"], {key: value.detach() for key, value in losses.items()}

    class Clock(Hook):
        began = train_s = 0.0

        def before_train_epoch(self, runner: Any) -> None:
            self.began = time.perf_counter()

        def after_train_epoch(self, runner: Any) -> None:
            self.train_s = time.perf_counter() - self.began

    def run(steps: int, metrics: int, folder: Path) -> float:
        clock = Clock()
        batches = list(loader(steps))
        runner = Runner(
            model=Model(metrics),
            work_dir=str(folder),
            train_dataloader=DataLoader(batches, batch_size=1, num_workers=0, collate_fn=lambda items: items[0]),
            train_cfg={"by_epoch": True, "max_epochs": 1},
            optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.01}},
            default_hooks={"logger": {"type": "LoggerHook", "interval": log_every}, "checkpoint": None},
            visualizer={"type": "Visualizer", "vis_backends": [{"type": "TensorboardVisBackend"}]},
            custom_hooks=[clock],
            experiment_name=folder.name,
        )
        runner.train()
        return clock.train_s

    return run
