"""A process of a world: trains, validates and tests with registered metrics."""

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import torchmetrics
from torch.utils.data import Dataset
from torchmetrics.classification import BinaryAveragePrecision, MulticlassJaccardIndex

from tests.stories.serving import serve
from vision3d_engine import BatchTester, ConfusionMatrix, EpochBasedTrainer, PartIoU, RegistrationRecall
from vision3d_engine import build_dataloader as loader_of

PARTS = {"mug": range(2), "lamp": range(2, 5), "car": range(5, 6)}


def turned(degrees, shift):
    """Return a transform ``(4, 4)`` about the z axis."""
    pose, angle = torch.eye(4, dtype=torch.float64), torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    pose[:2, :2] = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
    pose[0, 3] = shift
    return pose


class Clouds(Dataset):
    """Cloud i has seven points with logits, labels, parts and a pose that is wrong by a function of i."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        category, first = index % len(PARTS), list(PARTS.values())[index % len(PARTS)][0]
        return {
            "x": torch.randn(3, generator=generator, dtype=torch.float64),
            "logits": torch.randn(4, 7, generator=generator),
            "label": torch.randint(-1, 4, (7,), generator=generator),
            "parts": torch.randn(6, 7, generator=generator),
            "part": torch.randint(first, first + len(list(PARTS.values())[category]), (7,), generator=generator),
            "category": category,
            "estimated": turned(index * 1.7 % 9, index * 0.31 % 3),
            "true": turned(0.0, 0.0),
        }


class Least:
    """A metric of the script's own with nothing but what is needed."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.total, self.number = 0, 0

    def update(self, categories):
        self.total, self.number = self.total + int(categories.sum()), self.number + len(categories)

    def compute(self):
        return {"total": self.total, "number": self.number}

    def merge_state(self, others):
        for other in others:
            self.total, self.number = self.total + other.total, self.number + other.number


class Nested(torchmetrics.Metric):
    """A metric whose states are those of another one."""

    full_state_update = False

    def __init__(self):
        super().__init__()
        self.inner = torchmetrics.SumMetric()

    def update(self, categories):
        self.inner.update(len(categories))

    def compute(self):
        return self.inner.compute()


def registered(engine):
    found = {
        "seg": ConfusionMatrix(4, ignore_index=-1),
        "parts": PartIoU(PARTS),
        "pose": RegistrationRecall(),
        "own": Least(),
        "jaccard": MulticlassJaccardIndex(4, ignore_index=-1),
        "mean": torchmetrics.MeanMetric(),
        "nested": Nested(),
        "classes": torchmetrics.ClasswiseWrapper(MulticlassJaccardIndex(4, "none", ignore_index=-1)),
        "ap": BinaryAveragePrecision(),
        "both": torchmetrics.MetricCollection(
            {"a": MulticlassJaccardIndex(4, ignore_index=-1), "b": MulticlassJaccardIndex(4, "none", ignore_index=-1)}
        ),
    }
    return {name: engine.register_metric(name, metric) for name, metric in found.items()}


def take_in(metrics, data_dict):
    clouds = {key: data_dict[key] for key in ("logits", "label", "parts", "part", "estimated", "true", "category")}
    if clouds["label"].ndim == 1:  # one case of a batch
        clouds = {key: torch.as_tensor(value)[None] for key, value in clouds.items()}
    for name in ("seg", "jaccard", "both", "classes"):
        metrics[name].update(clouds["logits"], clouds["label"])
    metrics["parts"].update(clouds["parts"], clouds["part"], clouds["category"])
    metrics["pose"].update(clouds["estimated"], clouds["true"])
    for name in ("own", "nested"):
        metrics[name].update(clouds["category"])
    metrics["mean"].update(clouds["estimated"][:, 0, 3])
    metrics["ap"].update(clouds["logits"][:, 0].sigmoid(), (clouds["label"] == 0).long())


class Trainer(EpochBasedTrainer):
    def __init__(self, folder, count, train_count, trainer):
        super().__init__({"exp": {"output_dir": folder}, "trainer": {"max_epoch": 1, **trainer}})
        self.register_loader(
            loader_of(Clouds(train_count), 1, shuffle=True, num_workers=0), loader_of(Clouds(count), 2, num_workers=0)
        )
        model = self.register_model(torch.nn.Linear(3, 1).double())
        self.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
        self.metrics = registered(self)

    def train_step(self, epoch, iteration, data_dict):
        take_in(self.metrics, data_dict)
        return {}, {"loss": self.model(data_dict["x"]).square().mean()}

    def val_step(self, epoch, iteration, data_dict):
        take_in(self.metrics, data_dict)
        return {}, {}

    def after_train_epoch(self, epoch, summary_dict):
        self.train_summary = dict(summary_dict)

    def after_val_epoch(self, epoch, summary_dict):
        self.summary = dict(summary_dict)
        self.matrix = self.metrics["seg"].merged().matrix.tolist()


class OwnLoop(Trainer):
    """Validates by a loop of its own."""

    def val_epoch(self):
        seg, mean = self.metrics["seg"], self.metrics["mean"]
        seg.reset()
        mean.reset()
        for data_dict in self.val_loader:
            seg.update(data_dict["logits"], data_dict["label"])
            mean.update(data_dict["estimated"][:, 0, 3])
        self.summary = {"seg/OA": seg.compute()["OA"], "mean": mean.compute().item()}
        self.matrix = seg.merged().matrix.tolist()


class ForOne(Least):
    """Merges a single other one, where a list comes."""

    def merge_state(self, other):
        self.total += other.total


class Tester(BatchTester):
    def __init__(self, folder, count):
        path = Path(folder) / "weights.pth"
        torch.save(torch.nn.Linear(3, 1).double().state_dict(), path)
        super().__init__({"exp": {"output_dir": folder}}, checkpoint=str(path))
        self.register_loader(loader_of(Clouds(count), 2, num_workers=0))
        self.register_model(torch.nn.Linear(3, 1).double())
        self.metrics = registered(self)

    def test_step(self, iteration, data_dict):
        return {"prediction": self.model(data_dict["x"])}

    def eval_step(self, iteration, data_dict, output_dict):
        take_in(self.metrics, data_dict)
        return {}

    def after_test_epoch(self, summary_dict):
        self.summary = dict(summary_dict)


class Unmerged(Least):
    merge_state = None


def refused(folder):
    """Return what is said of metrics that several processes cannot merge."""
    trainer, said = Trainer(folder, 1, 1, {}), []
    unpicklable = Least()
    unpicklable.reset = lambda: None
    synced = torchmetrics.MeanMetric(dist_sync_on_step=True)
    metrics = (Unmerged(), torchmetrics.MaxMetric(), synced, unpicklable, torchmetrics.RunningMean())
    for number, metric in enumerate(metrics):
        try:
            trainer.register_metric(f"metric{number}", metric)
        except Exception as error:  # noqa: BLE001  the test decides
            said.append(f"{type(error).__name__}: {error}")
    return said


@contextmanager
def one_folder():
    """Return a folder that all processes share, as results of a test need it; gone once all are done with it."""
    found = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found)
    yield found[0]
    dist.barrier()
    shutil.rmtree(found[0], ignore_errors=True)


def run(case):
    with one_folder() as folder:
        if case["kind"] == "refused":
            return refused(folder)
        if case["kind"] == "test":
            tester = Tester(folder, case["count"])
            tester.run()
            return tester.summary
        kind = OwnLoop if case["kind"] == "own loop" else Trainer
        trainer = kind(folder, case["count"], case["train_count"], case.get("trainer", {}))
        if case["kind"] == "main only" and torch.distributed.get_rank() == 0:
            trainer.register_metric("extra", Least())
        if case["kind"] == "for one":
            trainer.metrics["own"] = trainer.register_metric("single", ForOne())
        trainer.run()
        return {"train": trainer.train_summary, "val": trainer.summary, "matrix": trainer.matrix}


if __name__ == "__main__":
    serve(run)
