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

from vision3d_engine import (
    BatchTester,
    ConfusionMatrix,
    IterBasedTrainer,
    build_dataloader,
    build_optimizer,
    build_scheduler,
)
from vision3d_engine.core.errors import ConfigError
from vision3d_engine.demo.network import ShapeClassifier
from vision3d_engine.demo.shapes import SHAPE_NAMES, ShapeDataset


@dataclass(frozen=True)
class DemoSettings:
    """Train a small point-cloud classifier on ten kinds of everyday shapes, on this machine, without any download."""

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
    """Draw result.png at the end, where matplotlib is installed."""

    def as_config(self) -> dict[str, Any]:
        """Return the settings as the engine reads them."""
        iterations = self.max_epoch * -(-self.num_train // self.batch_size)
        warmup = {"warmup_steps": iterations // 5, "eta_init": 0.05, "eta_min": 1e-3}
        return {
            "exp": {"name": "shapes", "output_dir": str(self.output_dir), "seed": self.seed},
            "trainer": {
                "max_epoch": self.max_epoch,
                "resume": self.resume,
                "overwrite": True,
                "replay_every": "20 iterations",
            },
            "optimizer": {"type": "AdamW", "lr": 4e-3, "weight_decay": 1e-3},
            "scheduler": {"type": "Cosine", "total_steps": iterations, **warmup},
        }

    def val_set(self) -> ShapeDataset:
        """Return the clouds of validation and test."""
        return ShapeDataset(self.num_val, self.num_points, seed=self.seed + 1)


class DemoTrainer(IterBasedTrainer):
    """Learns which shape a cloud is."""

    def __init__(self, settings: DemoSettings) -> None:
        cfg = settings.as_config()
        super().__init__(cfg)
        train_set = ShapeDataset(settings.num_train, settings.num_points, seed=settings.seed)
        train_loader = build_dataloader(train_set, settings.batch_size, num_workers=0, shuffle=True)
        self.register_loader(train_loader, build_dataloader(settings.val_set(), 100, num_workers=0))
        model = self.register_model(ShapeClassifier())
        optimizer = build_optimizer(model, cfg)
        self.register_optimizer(optimizer)
        self.register_scheduler(build_scheduler(optimizer, cfg))
        self.save_best_model_on_metric("accuracy")

    def train_step(self, epoch: int, iteration: int, data_dict: Any) -> tuple[Any, dict[str, Any]]:
        """Classify turned and scaled clouds."""
        return self.val_step(epoch, iteration, data_dict | {"points": turned_and_scaled(data_dict["points"])})

    def val_step(self, epoch: int, iteration: int, data_dict: Any) -> tuple[Any, dict[str, Any]]:
        """Classify clouds as they are."""
        logits, label = self.model(data_dict["points"]), data_dict["label"]
        loss = cross_entropy(logits, label, label_smoothing=0.1 * self.model.training)
        return {"logits": logits}, {"loss": loss, "accuracy": (logits.argmax(dim=1) == label).float().mean()}


class DemoTester(BatchTester):
    """Classifies cloud by cloud and remembers what it said."""

    def __init__(self, settings: DemoSettings) -> None:
        super().__init__(settings.as_config(), checkpoint="best_accuracy.pth")
        self.val_set = settings.val_set()
        self.register_loader(build_dataloader(self.val_set, 100, num_workers=0))
        self.register_model(ShapeClassifier())
        self.counts = self.register_metric("shapes", ConfusionMatrix(len(SHAPE_NAMES), names=SHAPE_NAMES))
        self.predictions: list[int] = []
        self.accuracy = 0.0

    def test_step(self, iteration: int, data_dict: Any) -> Any:
        """Classify a batch."""
        return {"prediction": self.model(data_dict["points"]).argmax(dim=1)}

    def eval_step(self, iteration: int, data_dict: Any, output_dict: Any) -> dict[str, Any]:
        """Judge one cloud."""
        prediction, label = output_dict["prediction"], data_dict["label"]
        self.predictions.append(int(prediction))
        self.counts.update(prediction, label)
        return {"accuracy": (prediction == label).float()}

    def after_test_epoch(self, summary_dict: dict[str, Any]) -> None:
        """Show a few clouds in TensorBoard's mesh tab: right ones green, wrong ones red."""
        self.accuracy = summary_dict["accuracy"]
        shown, points = self.shown(), self.val_set.points
        is_right = torch.tensor(self.predictions)[shown] == self.val_set.labels[shown]
        colors = torch.where(is_right[:, None, None], torch.tensor([60, 160, 90]), torch.tensor([220, 50, 40]))
        self.write_points("clouds", points[shown], colors.expand(-1, points.shape[1], -1))

    def shown(self) -> list[int]:
        """Return the indices of clouds to show: at most two wrong ones, then one of each kind."""
        labels = self.val_set.labels.tolist()
        wrong = [index for index, label in enumerate(labels) if self.predictions[index] != label][:2]
        return list(dict.fromkeys([*wrong, *range(min(len(SHAPE_NAMES), len(labels)))]))


def turned_and_scaled(points: torch.Tensor) -> torch.Tensor:
    """Turn each cloud ``(B, N, 3)`` about the vertical axis and scale it, at random."""
    angle = torch.rand(len(points), 1, device=points.device) * (2 * torch.pi)
    (x, y, z), c, s = points.unbind(dim=-1), angle.cos(), angle.sin()
    turned = torch.stack([c * x - s * y, s * x + c * y, z], dim=-1)
    return turned * torch.empty(len(points), 1, 1, device=points.device).uniform_(0.85, 1.15)


def run_demo(settings: DemoSettings) -> float:
    """Train, test, draw and say what to do next; return the accuracy of the best model, from 0 to 1."""
    torch.set_num_threads(settings.threads)
    started = time.perf_counter()
    trainer = DemoTrainer(settings)
    print(f"python {platform.python_version()} | torch {torch.__version__} | {settings.threads} thread(s)", flush=True)
    print(f"{len(SHAPE_NAMES)} kinds of shapes, {settings.num_train} training and {settings.num_val} validation clouds")
    trainer.run()
    tester = DemoTester(settings)
    tester.run()
    folder, more = settings.output_dir, settings.max_epoch + 4
    picture = draw(folder, tester) if settings.picture else ""
    seconds = time.perf_counter() - started
    print(f"\ndone in {seconds:.0f} s: {tester.accuracy:.1%} of the validation clouds are classified rightly")
    print(f"{picture}what next:")
    print(f"  {program('tensorboard')} --logdir {folder}     # curves, and clouds in the MESH tab")
    print(f"  {program('vision3d-engine')} demo --output-dir {folder} --resume --max-epoch {more}")
    print(f"  {program('vision3d-engine')} demo --help")
    return float(tester.accuracy)


def draw(folder: Path, tester: DemoTester) -> str:
    """Draw curves and clouds into the run folder; return the line that says where, or how to get a picture."""
    from vision3d_engine.demo.picture import draw_result

    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    labels, said = tester.val_set.labels.tolist(), tester.predictions
    points = tester.val_set.points.numpy()
    clouds = [(points[index], SHAPE_NAMES[labels[index]], SHAPE_NAMES[said[index]]) for index in tester.shown()]
    try:
        draw_result(folder / "result.png", rows, clouds)
    except ConfigError as missing:
        return f"no picture: {missing}\n"
    return f"picture: {folder / 'result.png'}\n"


def program(name: str) -> str:
    """Return how to call an installed program from here: by its name, or by its path when it is not on PATH."""
    if shutil.which(name):
        return name
    path = Path(sys.executable).with_name(name)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
