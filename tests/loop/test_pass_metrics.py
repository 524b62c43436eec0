"""Metrics that a script registers: a state for each pass over a set, its numbers wherever numbers are."""

import json
import math

import pytest
import torch
import torchmetrics
from sklearn.metrics import average_precision_score, jaccard_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics.classification import BinaryAveragePrecision, MulticlassJaccardIndex

from tests.toys import Rows, ToyBatchTester, ToyEpochTrainer, ToySingleTester, rows_loader, save_weights, settings
from vision3d_engine import CheckpointError, ConfusionMatrix, RegistrationError, ResultError, SkipBatch
from vision3d_engine.metrics import RegistrationRecall

NAMES = ["floor", "wall", "chair"]


def label_of(data_dict):
    return (data_dict["y"] > 0).long() + (data_dict["y"] > 1).long()


def mean_iou(rows, samples=slice(None)):
    """Return what scikit-learn says of all samples at once; the inputs pass for logits."""
    predicted, true = rows.x.argmax(1)[samples], label_of(vars(rows))[samples]
    return jaccard_score(true, predicted, average="macro", labels=sorted({*true.tolist(), *predicted.tolist()}))


def take_in(handle, data_dict):
    handle.update(data_dict["x"], label_of(data_dict))


class Segmenting:
    """Updates its metric in steps of training and validation."""

    updates_in = ("train", "val")

    def set_up(self, metric=None):
        self.seg = self.register_metric("seg", metric or ConfusionMatrix(3, names=NAMES))
        self.summaries, self.train_summaries, self.lines = [], [], []

    def train_step(self, epoch, iteration, data_dict):
        if "train" in self.updates_in:
            take_in(self.seg, data_dict)
        return super().train_step(epoch, iteration, data_dict)

    def val_step(self, epoch, iteration, data_dict):
        if "val" in self.updates_in:
            take_in(self.seg, data_dict)
        return super().val_step(epoch, iteration, data_dict)

    def after_train_epoch(self, epoch, summary_dict):
        super().after_train_epoch(epoch, summary_dict)
        self.train_summaries.append(dict(summary_dict))

    def after_val_epoch(self, epoch, summary_dict):
        super().after_val_epoch(epoch, summary_dict)
        self.summaries.append(dict(summary_dict))

    def log(self, message, level="INFO"):
        if hasattr(self, "lines"):
            self.lines.append(str(message))
        super().log(message, level)


class Trainer(Segmenting, ToyEpochTrainer):
    def __init__(self, *args, metric=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.set_up(metric)


def trained(trainer):
    trainer.run()
    return trainer


def test_the_numbers_of_all_passes_are_those_of_all_samples_at_once(tmp_path):
    trainer = trained(Trainer(settings(tmp_path, max_epoch=2), rows_loader(7), rows_loader(5)))
    assert [each["seg/mIoU"] for each in trainer.train_summaries] == [mean_iou(Rows(7))] * 2
    assert [each["seg/mIoU"] for each in trainer.summaries] == [mean_iou(Rows(5))] * 2
    assert trainer.train_summaries[0].keys() > {"loss", "seg/OA", "seg/mAcc", "seg/IoU/wall"}


@pytest.mark.parametrize("kind", [ToySingleTester, ToyBatchTester])
def test_a_test_has_the_numbers_over_all_cases(kind, tmp_path):
    class Tester(kind):
        def __init__(self, cfg):
            super().__init__(cfg, rows_loader(7, 2))
            self.seg = self.register_metric("seg", ConfusionMatrix(3))

        def eval_step(self, iteration, data_dict, output_dict):
            x, y = data_dict["x"].view(-1, 3), data_dict["y"].view(-1)
            take_in(self.seg, {"x": x, "y": y})
            return super().eval_step(iteration, data_dict, output_dict)

    save_weights(tmp_path)
    tester = trained(Tester(settings(tmp_path)))
    assert tester.summary["seg/mIoU"] == mean_iou(Rows(7))


def test_a_case_that_is_left_out_is_in_no_metric_and_the_others_of_its_batch_are(tmp_path):
    class Tester(ToyBatchTester):
        def eval_step(self, iteration, data_dict, output_dict):
            take_in(self.seg, {"x": data_dict["x"].view(1, 3), "y": data_dict["y"].view(1)})
            if iteration == 2:
                raise SkipBatch("no truth")
            return super().eval_step(iteration, data_dict, output_dict)

    save_weights(tmp_path)
    tester = Tester(settings(tmp_path), rows_loader(4, 2))
    tester.seg = tester.register_metric("seg", ConfusionMatrix(3))
    assert trained(tester).summary["seg/mIoU"] == mean_iou(Rows(4), [0, 2, 3])


def test_classes_are_a_table_below_the_line_and_all_numbers_are_in_the_files(tmp_path):
    trainer = trained(Trainer(settings(tmp_path)))
    for start, summary in (("[Train]", trainer.train_summaries[0]), ("[Val]", trainer.summaries[0])):
        line, *table = next(each for each in trainer.lines if each.startswith(start)).splitlines()
        assert "seg/mIoU" in line
        assert "seg/IoU" not in line
        assert [row.split() for row in table] == [
            ["seg/IoU"],
            *([name, f"{summary[f'seg/IoU/{name}']:.3f}"] for name in NAMES),
        ]
        assert len({len(row) for row in table}) == 1
    rows = {
        row["phase"]: row["values"] for row in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    }
    assert rows["val"] == trainer.summaries[0]
    assert rows["train_epoch"] == trainer.train_summaries[0]
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert {"val/seg/mIoU", "val/seg/IoU/wall", "train_epoch/seg/IoU/wall"} <= {*events.Tags()["scalars"]}


def test_a_validation_in_the_midst_of_an_epoch_leaves_what_training_has_counted(tmp_path):
    trainer = trained(Trainer(settings(tmp_path, val_every="2 iterations"), rows_loader(7), rows_loader(5)))
    assert len(trainer.summaries) == 2
    assert {each["seg/mIoU"] for each in trainer.summaries} == {mean_iou(Rows(5))}
    assert trainer.train_summaries[0]["seg/mIoU"] == mean_iou(Rows(7))


def test_each_of_several_sets_has_its_own_numbers(tmp_path):
    class Sets(Trainer):
        def after_val_epoch(self, epoch, summary_dict):
            super().after_val_epoch(epoch, summary_dict)
            self.merged = [self.seg.merged(name).matrix.sum().item() for name in ("easy", "hard")]
            self.computed = self.seg.compute("easy")["mIoU"]
            with pytest.raises(
                RegistrationError, match=r"merged\(\) .* needs the name of a validation set: easy, hard"
            ):
                self.seg.merged()

    trainer = Sets(settings(tmp_path), val_loader={"easy": rows_loader(5), "hard": rows_loader(8)})
    trainer.save_best_model_on_metric("hard/seg/mIoU")
    trainer.run()
    assert trainer.summaries[0]["easy/seg/mIoU"] == mean_iou(Rows(5))
    assert trainer.summaries[0]["hard/seg/mIoU"] == mean_iou(Rows(8))
    assert trainer.merged == [5, 8]
    assert trainer.computed == mean_iou(Rows(5))
    assert (tmp_path / "checkpoints" / "best_hard_seg_mIoU.pth").exists()


def test_a_metric_can_select_end_and_move_the_schedule(tmp_path):
    early = {"early_stopping_metric": "seg/mIoU", "early_stopping_patience": 1, "early_stopping_mode": "max"}
    trainer = Trainer(settings(tmp_path, max_epoch=9, **early))
    trainer.save_best_model_on_metric("seg/OA")
    trainer.scheduler = None
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(trainer.optimizer, patience=0, factor=0.5)
    trainer.register_scheduler(schedule, metric="seg/mIoU")
    trainer.run()
    assert trainer.epoch == 2
    assert trainer.get_lr() == 0.05
    assert (tmp_path / "checkpoints" / "best_seg_OA.pth").exists()


def test_a_metric_that_validations_never_update_selects_nothing(tmp_path):
    trainer = Trainer(settings(tmp_path))
    trainer.updates_in = ("train",)
    trainer.save_best_model_on_metric("seg/mIoU")
    with pytest.raises(ResultError, match="'seg' is registered, but nothing updated it in the validation"):
        trainer.run()


def test_a_metric_has_no_number_in_a_pass_that_does_not_update_it(tmp_path):
    trainer = Trainer(settings(tmp_path))
    trainer.updates_in = ("val",)
    assert trained(trainer).train_summaries[0].keys() == {"loss", "mae"}


def test_where_all_batches_are_left_out_the_metric_is_not_measured(tmp_path):
    class Skipping(Trainer):
        def val_step(self, epoch, iteration, data_dict):
            super().val_step(epoch, iteration, data_dict)
            raise SkipBatch("no truth")

    trainer = Skipping(settings(tmp_path))
    trainer.save_best_model_on_metric("seg/mIoU")
    assert trained(trainer).summaries == [{"skipped": 2}]


def test_a_key_of_the_results_that_a_metric_has_too_is_refused(tmp_path):
    class Doubled(Trainer):
        def val_step(self, epoch, iteration, data_dict):
            output_dict, result_dict = super().val_step(epoch, iteration, data_dict)
            return output_dict, result_dict | {"seg/OA": 1.0}

    with pytest.raises(ResultError, match=r"'seg/OA' is a number of the metric 'seg' and a key of the step's results"):
        Doubled(settings(tmp_path)).run()


# ------------------------------------------------------------------------------------------- steps that do not count


def raise_skip(_loss):
    raise SkipBatch("no truth")


def raise_oom(_loss):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def spoil(loss):
    return loss * math.nan


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("bad", [1, 2])
@pytest.mark.parametrize("way", [raise_skip, raise_oom, spoil])
def test_a_training_step_that_is_left_out_behind_its_update_counts_nothing(way, bad, window, tmp_path):
    class Skipping(Trainer):
        def train_step(self, epoch, iteration, data_dict):
            output_dict, result_dict = super().train_step(epoch, iteration, data_dict)
            if iteration == bad:
                result_dict["loss"] = way(result_dict["loss"])
            return output_dict, result_dict

    way_out = {"on_oom": "skip", "nonfinite": "skip", "max_skipped": 1.0, "grad_acc_steps": window}
    trainer = Skipping(settings(tmp_path, **way_out), rows_loader(8))
    left = [each for each in range(8) if each // 2 + 1 != bad]
    assert trained(trainer).train_summaries[0]["seg/mIoU"] == mean_iou(Rows(8), left)


def test_a_validation_step_that_is_left_out_behind_its_update_counts_nothing(tmp_path):
    class Skipping(Trainer):
        def val_step(self, epoch, iteration, data_dict):
            found = super().val_step(epoch, iteration, data_dict)
            return None if iteration == 2 else found

    trainer = Skipping(settings(tmp_path), val_loader=rows_loader(6))
    assert trained(trainer).summaries[0]["seg/mIoU"] == mean_iou(Rows(6), [0, 1, 4, 5])


def test_that_a_metric_of_another_library_keeps_a_batch_that_is_left_out_is_said_once(tmp_path, capsys):
    class Skipping(Trainer):
        def val_step(self, epoch, iteration, data_dict):
            found = super().val_step(epoch, iteration, data_dict)
            return None if iteration < 3 else found

    trained(Skipping(settings(tmp_path), val_loader=rows_loader(6), metric=MulticlassJaccardIndex(3)))
    assert (tmp_path / "logs").exists()
    text = "".join(each.read_text() for each in (tmp_path / "logs").iterdir())
    assert text.count("cannot take back: call its update last") == 1


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("failing", [1, 2, 3, 4])
def test_another_run_behind_a_step_that_failed_counts_every_sample_once(failing, window, tmp_path):
    class Failing(Trainer):
        has_failed = False

        def train_step(self, epoch, iteration, data_dict):
            found = super().train_step(epoch, iteration, data_dict)
            if iteration == failing and not self.has_failed:
                self.has_failed = True
                raise ValueError("once")
            return found

    trainer = Failing(settings(tmp_path, grad_acc_steps=window), rows_loader(8))
    with pytest.raises(ValueError, match="once"):
        trainer.run()
    assert trained(trainer).train_summaries[0]["seg/mIoU"] == mean_iou(Rows(8))


def test_that_a_metric_of_another_library_counts_a_window_twice_behind_a_failed_step_is_said_once(tmp_path):
    class Failing(Trainer):
        failures = 2

        def train_step(self, epoch, iteration, data_dict):
            found = super().train_step(epoch, iteration, data_dict)
            if iteration == 4 and self.failures:
                self.failures -= 1
                raise ValueError("twice")
            return found

    trainer = Failing(settings(tmp_path, grad_acc_steps=2), rows_loader(8), metric=MulticlassJaccardIndex(3))
    for _ in range(2):
        with pytest.raises(ValueError, match="twice"):
            trainer.run()
    trainer.run()
    text = "".join(each.read_text() for each in (tmp_path / "logs").iterdir())
    assert text.count("'seg' (MulticlassJaccardIndex) has counted batches behind the last update, and cannot take") == 1


def test_nothing_is_said_where_a_run_is_broken_off_behind_an_update(tmp_path):
    class Stopping(Trainer):
        def after_train_step(self, epoch, iteration, data_dict, output_dict, result_dict):
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        Stopping(settings(tmp_path), rows_loader(8), metric=MulticlassJaccardIndex(3)).run()
    text = "".join(each.read_text() for each in (tmp_path / "logs").iterdir())
    assert "behind the last update" not in text


def test_another_run_behind_a_validation_that_failed_in_mid_epoch_counts_every_sample_once(tmp_path):
    class Failing(Trainer):
        has_failed = False

        def val_step(self, epoch, iteration, data_dict):
            if not self.has_failed:
                self.has_failed = True
                raise ValueError("once")
            return super().val_step(epoch, iteration, data_dict)

    trainer = Failing(settings(tmp_path, val_every="2 iterations"), rows_loader(8))
    with pytest.raises(ValueError, match="once"):
        trainer.run()
    assert trained(trainer).train_summaries[0]["seg/mIoU"] == mean_iou(Rows(8))


# ------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("metric", [ConfusionMatrix(3), MulticlassJaccardIndex(3)], ids=["own", "torchmetrics"])
@pytest.mark.parametrize("at", [2, 4])
def test_a_resume_in_mid_epoch_has_the_numbers_of_the_whole_epoch(at, metric, tmp_path, argv):
    class Stopping(Trainer):
        def after_train_step(self, epoch, iteration, data_dict, output_dict, result_dict):
            if iteration == at:
                raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        Stopping(settings(tmp_path, save_every="1 iteration"), rows_loader(8), metric=metric).run()
    argv("--resume")
    trainer = trained(Trainer(settings(tmp_path), rows_loader(8), metric=metric))
    assert [call for call in trainer.calls if call[0] == "train_step"] == [("train_step", 1, n) for n in range(at, 5)]
    key = "seg/mIoU" if isinstance(metric, ConfusionMatrix) else "seg"
    exact = mean_iou(Rows(8))
    assert trainer.train_summaries[0][key] == pytest.approx(exact, rel=0 if key == "seg/mIoU" else 1e-6)


def test_a_resume_in_mid_epoch_with_other_settings_of_a_metric_is_refused(tmp_path, argv):
    class Stopping(Trainer):
        def after_train_step(self, epoch, iteration, data_dict, output_dict, result_dict):
            if iteration == 2:
                raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        Stopping(settings(tmp_path, save_every="1 iteration"), rows_loader(8)).run()
    argv("--resume")
    other = ConfusionMatrix(3, names=NAMES[::-1])
    with pytest.raises(
        CheckpointError, match=r"names \['floor', 'wall', 'chair'\], expected \['chair', 'wall', 'floor'\]"
    ):
        Trainer(settings(tmp_path), rows_loader(8), metric=other).run()


class Plain:
    """The least that can be registered, on one process."""

    def __init__(self):
        self.reset()

    def update(self, prediction, label):
        self.right += int((prediction.argmax(1) == label).sum())

    def compute(self):
        return self.right

    def reset(self):
        self.right = 0


def test_what_has_no_state_is_named_once_when_it_is_saved_in_mid_epoch(tmp_path):
    trainer = trained(Trainer(settings(tmp_path, save_every="1 iteration"), rows_loader(8), metric=Plain()))
    assert trainer.train_summaries[0]["seg"] == (Rows(8).x.argmax(1) == label_of(vars(Rows(8)))).sum()
    text = "".join(each.read_text() for each in (tmp_path / "logs").iterdir())
    assert text.count("'seg' (Plain) has no state_dict and load_state_dict") == 1


# ------------------------------------------------------------------------------------------- registering


def test_the_registered_object_and_what_others_registered_stay_as_they_are(tmp_path):
    metric = ConfusionMatrix(3)
    trained(Trainer(settings(tmp_path), metric=metric))
    assert metric.matrix.sum() == 0


@pytest.mark.parametrize("name", ["", "a/b", 3])
def test_a_name_that_is_none_is_refused(name, tmp_path):
    with pytest.raises(RegistrationError, match="expected a text without '/'"):
        Trainer(settings(tmp_path)).register_metric(name, ConfusionMatrix(3))


def test_a_name_that_is_taken_and_what_is_no_metric_are_refused(tmp_path):
    trainer = Trainer(settings(tmp_path))
    with pytest.raises(RegistrationError, match="this name is taken"):
        trainer.register_metric("seg", ConfusionMatrix(3))
    with pytest.raises(RegistrationError, match="which has no update, compute, reset"):
        trainer.register_metric("other", torch.nn.Identity())


@pytest.mark.parametrize(
    ("found", "numbers"),
    [
        (0.5, {"it": 0.5}),
        (torch.tensor([1, 2]), {"it/0": 1, "it/1": 2}),
        ({"a": torch.tensor(2.0), "b/c": 3}, {"it/a": 2, "it/b/c": 3}),
        ({"a": torch.tensor([2.0, 4.0])}, {"it/a/0": 2, "it/a/1": 4}),
    ],
)
def test_numbers_are_called_by_the_metric_and_their_own_keys(found, numbers, tmp_path):
    class Constant(Plain):
        def compute(self):
            return found

    trainer = Trainer(settings(tmp_path))
    it = trainer.register_metric("it", Constant())
    trainer.before_val_step = lambda _epoch, _iteration, data_dict: take_in(it, data_dict)
    summary = trained(trainer).summaries[0]
    assert {key: value for key, value in summary.items() if key.startswith("it")} == numbers


def test_what_is_no_number_is_refused(tmp_path):
    class Wrong(Plain):
        def compute(self):
            return {"it": "high"}

    with pytest.raises(ResultError, match=r"compute\(\) of a registered metric gave .* as 'seg/it'; expected a number"):
        Trainer(settings(tmp_path), metric=Wrong()).run()


class Reads(TorchDispatchMode):
    """Counts numbers that python asks of tensors."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += str(func).startswith(("aten._local_scalar_dense", "aten.is_nonzero", "aten.nonzero"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
def test_a_step_with_metrics_reads_nothing_from_the_device(nonfinite, tmp_path):
    reads, marks = Reads(), []

    class Watched(Trainer):
        def before_train_step(self, epoch, iteration, data_dict):
            marks.append(reads.count)

        before_val_step = before_train_step

    trainer = Watched(settings(tmp_path, nonfinite=nonfinite, log_steps=1000), rows_loader(40), rows_loader(40))
    poses = trainer.register_metric("poses", RegistrationRecall())
    trainer.after_train_step = lambda *_: poses.update(torch.eye(4), torch.eye(4))
    with reads:
        trainer.run()
    assert len(marks) == 40
    assert len({*marks[:20]}) == len({*marks[20:]}) == 1
    assert reads.count > marks[-1]


# ------------------------------------------------------------------------------------------- torchmetrics


def test_torchmetrics_has_the_numbers_of_scikit_learn(tmp_path):
    class Many(Trainer):
        def __init__(self, *args):
            super().__init__(*args)
            self.ap = self.register_metric("ap", BinaryAveragePrecision())
            both = [MulticlassJaccardIndex(3), MulticlassJaccardIndex(3, average="none")]
            named = dict(zip(("mean", "each"), both, strict=True))
            self.all = self.register_metric("all", torchmetrics.MetricCollection(named))
            self.mean = self.register_metric("mean", torchmetrics.MeanMetric())

        def val_step(self, epoch, iteration, data_dict):
            self.ap.update(data_dict["x"][:, 0].sigmoid(), (data_dict["y"] > 0).long())
            take_in(self.all, data_dict)
            self.mean.update(data_dict["y"])
            return super().val_step(epoch, iteration, data_dict)

    rows = Rows(9)
    summary = trained(Many(settings(tmp_path), None, rows_loader(9))).summaries[0]
    ap = average_precision_score((rows.y > 0).long(), rows.x[:, 0].sigmoid())
    assert summary["ap"] == pytest.approx(ap, rel=1e-6)
    assert summary["all/mean"] == pytest.approx(mean_iou(rows), rel=1e-6)
    assert summary["all/each/1"] == pytest.approx(summary["seg/IoU/wall"], rel=1e-6)
    assert summary["mean"] == pytest.approx(rows.y.mean().item(), rel=1e-6)
