"""Train a point-cloud classifier, test it, draw a picture: the demo, and an example of a whole project."""

import json
import platform
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from vision3d_engine import BatchTester, IterBasedTrainer, build_dataloader, build_optimizer, build_scheduler
from vision3d_engine.demo.network import ShapeClassifier
from vision3d_engine.demo.shapes import SHAPE_NAMES, ShapeDataset

_GREEN, _RED = (60, 160, 90), (220, 50, 40)


@dataclass(frozen=True)
class DemoSettings:
    """Train a DGCNN-like classifier on ten kinds of everyday shapes, on this machine, without any download."""

    output_dir: Path = Path("runs/shapes")
    """Folder of the run."""
    max_epoch: int = 8
    """Epochs to train."""
    num_train: int = 1000
    """Training clouds."""
    num_val: int = 400
    """Validation clouds."""
    num_points: int = 256
    """Points of a cloud."""
    batch_size: int = 25
    """Clouds of a batch."""
    seed: int = 0
    """Seed of the clouds, the weights and the order."""
    threads: int = 1
    """Threads of torch; more hardly help with clouds this small."""
    resume: bool = False
    """Go on from the latest checkpoint."""
    picture: bool = True
    """Draw result.png at the end (needs matplotlib)."""

    def as_config(self) -> dict[str, Any]:
        """Return the settings as the engine reads them."""
        iterations = self.max_epoch * -(-self.num_train // self.batch_size)
        return {
            "exp": {"name": "shapes", "output_dir": str(self.output_dir), "seed": self.seed},
            "trainer": {"max_epoch": self.max_epoch, "resume": self.resume, "overwrite": True},
            "optimizer": {"type": "AdamW", "lr": 4e-3, "weight_decay": 1e-3},
            "scheduler": {
                "type": "Cosine",
                "total_steps": iterations,
                "warmup_steps": iterations // 5,
                "eta_init": 0.05,
                "eta_min": 1e-3,
            },
        }


class DemoTrainer(IterBasedTrainer):
    """Learns which shape a cloud is."""

    def __init__(self, settings: DemoSettings) -> None:
        cfg = settings.as_config()
        super().__init__(cfg)
        train_set = ShapeDataset(settings.num_train, settings.num_points, seed=settings.seed)
        self.val_set = ShapeDataset(settings.num_val, settings.num_points, seed=settings.seed + 1)
        train_loader = build_dataloader(train_set, settings.batch_size, num_workers=0, shuffle=True)
        self.register_loader(train_loader, build_dataloader(self.val_set, 100, num_workers=0))
        model = self.register_model(ShapeClassifier())
        optimizer = build_optimizer(model, cfg)
        self.register_optimizer(optimizer)
        self.register_scheduler(build_scheduler(optimizer, cfg))
        self.save_best_model_on_metric("accuracy")

    def train_step(self, epoch: int, iteration: int, data_dict: Any) -> tuple[Any, dict[str, Any]]:
        """Classify turned and scaled clouds."""
        logits = self.model(turned_and_scaled(data_dict["points"]))
        loss = cross_entropy(logits, data_dict["label"], label_smoothing=0.1)
        return {"logits": logits}, {"loss": loss, "accuracy": accuracy(logits, data_dict["label"])}

    def val_step(self, epoch: int, iteration: int, data_dict: Any) -> tuple[Any, dict[str, Any]]:
        """Classify clouds as they are."""
        logits = self.model(data_dict["points"])
        loss = cross_entropy(logits, data_dict["label"])
        return {"logits": logits}, {"loss": loss, "accuracy": accuracy(logits, data_dict["label"])}


class DemoTester(BatchTester):
    """Classifies cloud by cloud and remembers what it said."""

    def __init__(self, settings: DemoSettings, val_set: ShapeDataset) -> None:
        super().__init__(settings.as_config(), checkpoint="best_accuracy.pth")
        self.register_loader(build_dataloader(val_set, 100, num_workers=0))
        self.register_model(ShapeClassifier())
        self.predictions: list[torch.Tensor] = []
        self.summary: dict[str, Any] = {}

    def test_step(self, iteration: int, data_dict: Any) -> Any:
        """Classify a batch."""
        return {"prediction": self.model(data_dict["points"]).argmax(dim=1)}

    def eval_step(self, iteration: int, data_dict: Any, output_dict: Any) -> dict[str, Any]:
        """Judge one cloud."""
        self.predictions.append(output_dict["prediction"])
        return {"accuracy": (output_dict["prediction"] == data_dict["label"]).float()}

    def after_test_epoch(self, summary_dict: dict[str, Any]) -> None:
        """Show a few clouds in TensorBoard's mesh tab: right ones green, wrong ones red."""
        self.summary = summary_dict
        predictions = torch.stack(self.predictions).cpu()
        clouds, labels = self.test_loader.dataset.points, self.test_loader.dataset.labels
        shown = chosen_clouds(labels, predictions, count=8)
        colors = torch.tensor([_RED, _GREEN])[(predictions[shown] == labels[shown]).long()]
        colors = colors[:, None].expand(-1, clouds.shape[1], -1)
        self.write_points("clouds", clouds[shown], colors)


def turned_and_scaled(points: torch.Tensor) -> torch.Tensor:
    """Turn each cloud ``(B, N, 3)`` about the vertical axis and scale it, at random."""
    angle = torch.rand(len(points), device=points.device) * (2 * torch.pi)
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    c, s = angle.cos(), angle.sin()
    turn = torch.stack([c, -s, zero, s, c, zero, zero, zero, one], dim=1).view(-1, 3, 3)
    return points @ turn * torch.empty(len(points), 1, 1, device=points.device).uniform_(0.85, 1.15)


def accuracy(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Return the share of right answers, on the device."""
    return (logits.argmax(dim=1) == label).float().mean()


def chosen_clouds(labels: torch.Tensor, predictions: torch.Tensor, count: int) -> list[int]:
    """Return the indices of clouds to show: a few wrong ones, then one of each kind."""
    wrong = torch.nonzero(predictions != labels).flatten().tolist()
    kinds = [int(torch.nonzero(labels == kind)[0]) for kind in range(len(SHAPE_NAMES)) if (labels == kind).any()]
    return list(dict.fromkeys([*wrong[: max(count - len(kinds), 2)], *kinds]))[:count]


def run_demo(settings: DemoSettings) -> float:
    """Train, test, draw and say what to do next; return the accuracy of the best model, from 0 to 1."""
    torch.set_num_threads(settings.threads)
    started = time.perf_counter()
    trainer = DemoTrainer(settings)
    say(f"python {platform.python_version()} | torch {torch.__version__} | {settings.threads} thread(s)")
    say(f"{len(SHAPE_NAMES)} kinds of shapes, {settings.num_train} training and {settings.num_val} validation clouds")
    trainer.run()
    tester = DemoTester(settings, trainer.val_set)
    tester.run()
    if settings.picture:
        draw(settings.output_dir, trainer.val_set, torch.stack(tester.predictions).cpu())
    finish(settings, float(tester.summary["accuracy"]), time.perf_counter() - started)
    return float(tester.summary["accuracy"])


def draw(folder: Path, val_set: ShapeDataset, predictions: torch.Tensor) -> None:
    """Draw curves and clouds into the run folder."""
    from vision3d_engine.demo.picture import draw_result

    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = [SHAPE_NAMES[label] for label in val_set.labels.tolist()], [SHAPE_NAMES[p] for p in predictions.tolist()]
    shown = chosen_clouds(val_set.labels, predictions, count=12)
    clouds = [(val_set.points[i].numpy(), names[0][i], names[1][i]) for i in shown]
    draw_result(folder / "result.png", rows, clouds)


def finish(settings: DemoSettings, result: float, seconds: float) -> None:
    """Say how it went, where things are, and three next commands."""
    folder, more = settings.output_dir, settings.max_epoch + 4
    say(f"\ndone in {seconds:.0f} s: {result:.1%} of the validation clouds are classified rightly")
    if settings.picture:
        say(f"picture: {folder / 'result.png'}")
    say("what next:")
    say(f"  {program('tensorboard')} --logdir {folder}     # curves, and clouds in the MESH tab")
    say(f"  {program('vision3d-engine')} demo --output-dir {folder} --resume --max-epoch {more}")
    say(f"  {program('vision3d-engine')} demo --help")


def program(name: str) -> str:
    """Return how to call an installed program from here: by its name, or by its path when it is not on PATH."""
    if shutil.which(name):
        return name
    path = Path(sys.executable).with_name(name)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def say(text: str) -> None:
    """Speak to the person at the console."""
    print(text, flush=True)  # noqa: T201  a demo talks
