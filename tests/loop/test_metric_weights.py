"""What means are over: samples, where their number is known; batches, on request; or what the user says."""

import json

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from tests.toys import ToyEpochTrainer, ToyIterTrainer, linear_model, settings
from vision3d_engine import BatchTester, ResultError, build_dataloader

NAN = float("nan")


class Numbers(Dataset):
    """Sample i is the number i, in a cloud whose first dimension says nothing about the number of samples."""

    def __len__(self):
        return 33

    def __getitem__(self, index):
        return float(index)


def packed(samples):
    return {"x": torch.zeros(7, 3, dtype=torch.float64), "y": torch.zeros(7, dtype=torch.float64), "n": samples}


class BySize(BatchSampler):
    """Batches of many sizes, in a random order."""

    def __init__(self):
        self.parts = [range(1), range(1, 17), range(17, 20), range(20, 33)]

    def __iter__(self):
        return (list(self.parts[i]) for i in torch.randperm(4).tolist())

    def __len__(self):
        return 4


LOADERS = {
    "built": lambda workers: build_dataloader(Numbers(), 16, num_workers=workers, collate_fn=packed),
    "plain": lambda workers: DataLoader(Numbers(), 16, num_workers=workers, collate_fn=packed),
    "shuffled": lambda workers: DataLoader(Numbers(), 16, shuffle=True, num_workers=workers, collate_fn=packed),
    "sampler": lambda workers: DataLoader(
        Numbers(), 16, sampler=RandomSampler(Numbers()), num_workers=workers, collate_fn=packed
    ),
    "batch sampler": lambda workers: build_dataloader(
        Numbers(), batch_sampler=BySize(), num_workers=workers, collate_fn=packed
    ),
    "list": lambda _workers: [packed([float(i) for i in part]) for part in BySize().parts],
}


class MeansOf:
    """Logs the mean of each batch, and keeps the summaries."""

    def train_step(self, epoch, iteration, data_dict):
        output_dict, result_dict = super().train_step(epoch, iteration, data_dict)
        return output_dict, {**result_dict, "mean": sum(data_dict["n"]) / len(data_dict["n"])}

    def val_step(self, epoch, iteration, data_dict):
        return {}, {"mean": torch.tensor(sum(data_dict["n"]) / len(data_dict["n"]))}

    def after_train_epoch(self, epoch, summary_dict):
        self.trained = summary_dict["mean"]

    def after_val_epoch(self, epoch, summary_dict):
        self.validated = summary_dict["mean"]


class EpochTrainer(MeansOf, ToyEpochTrainer):
    pass


class IterTrainer(MeansOf, ToyIterTrainer):
    pass


def curve_of(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["values"]["mean"] for row in rows if row["phase"] == "train"]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", sorted(set(LOADERS) - {"list"}))
@pytest.mark.parametrize("kind", [EpochTrainer, IterTrainer])
def test_means_of_epochs_log_lines_and_validations_are_over_samples(tmp_path, kind, name, workers):
    if kind is IterTrainer and workers:
        pytest.skip("the same reading as without workers")
    trainer = kind(settings(tmp_path, max_epoch=2, log_steps=100), LOADERS[name](workers), LOADERS[name](workers))
    trainer.run()
    assert trainer.trained == trainer.validated == 16.0
    assert curve_of(tmp_path) == [16.0, 16.0]


@pytest.mark.parametrize(("name", "options"), [("built", {"means": "batches"}), ("list", {})])
def test_they_are_over_batches_on_request_and_where_samples_are_not_counted(tmp_path, name, options):
    trainer = EpochTrainer(settings(tmp_path, **options), LOADERS[name](0), LOADERS[name](0))
    trainer.run()
    parts = [range(16), range(16, 32), range(32, 33)] if name == "built" else BySize().parts
    expected = sum(sum(part) / len(part) for part in parts) / len(parts)
    assert trainer.trained == trainer.validated == pytest.approx(expected)


@pytest.mark.parametrize("is_dict", [False, True])
@pytest.mark.parametrize("is_tensor", [False, True])
def test_the_hook_says_what_results_weigh_also_of_single_keys(tmp_path, is_dict, is_tensor):
    """A result without weight is NaN, such as a recall over no correspondences."""

    class Weighing(EpochTrainer):
        def val_step(self, epoch, iteration, data_dict):
            _, result_dict = super().val_step(epoch, iteration, data_dict)
            return {}, result_dict | {"recall": torch.tensor(NAN if iteration == 3 else 1.0 / iteration)}

        def metric_weight(self, data_dict, output_dict, result_dict):
            number = {16: 3, 1: 0}[len(data_dict["n"])]
            weight = torch.tensor(number) if is_tensor else number
            return {"recall": weight} if is_dict else weight

        def after_val_epoch(self, epoch, summary_dict):
            self.summary = dict(summary_dict)

    trainer = Weighing(settings(tmp_path, nonfinite="ignore"), LOADERS["built"](0), LOADERS["built"](0))
    trainer.run()
    assert trainer.summary["recall"] == pytest.approx((1 + 0.5) / 2)
    assert trainer.summary["mean"] == (16.0 if is_dict else 15.5)
    assert trainer.trained == (16.0 if is_dict else 15.5)


def test_a_log_interval_whose_loss_weighs_nothing_is_no_fault(tmp_path):
    class Empty(EpochTrainer):
        def loss_weight(self, data_dict, output_dict, result_dict):
            return self.metric_weight(data_dict, output_dict, result_dict)

        def metric_weight(self, data_dict, output_dict, result_dict):
            return 0 if self.iteration == 2 else len(data_dict["n"])

    trainer = Empty(settings(tmp_path, log_steps=1), LOADERS["built"](0), LOADERS["built"](0))
    trainer.run()
    assert curve_of(tmp_path)[::2] == [7.5, 32.0]


def test_a_case_of_a_test_weighs_one_unless_the_hook_says_otherwise(tmp_path):
    class Tester(BatchTester):
        def __init__(self):
            super().__init__(settings(tmp_path), checkpoint=str(tmp_path / "weights.pth"))
            self.register_model(linear_model())
            self.register_loader(LOADERS["built"](0))

        def test_step(self, iteration, data_dict):
            return {}

        def split_batch_dict(self, iteration, data_dict, output_dict):
            cases = [{"n": number} for number in data_dict["n"]]
            return cases, [{}] * len(cases)

        def eval_step(self, iteration, data_dict, output_dict):
            return {"mean": data_dict["n"]}

        def metric_weight(self, data_dict, output_dict, result_dict):
            return None if self.by_default else data_dict["n"]

        def after_test_epoch(self, summary_dict):
            self.summary = dict(summary_dict)

    torch.save(linear_model().state_dict(), tmp_path / "weights.pth")
    for by_default, expected in ((True, 16.0), (False, sum(n * n for n in range(33)) / sum(range(33)))):
        tester = Tester()
        tester.by_default = by_default
        tester.run()
        assert tester.summary["mean"] == pytest.approx(expected)


@pytest.mark.parametrize("setting", ["samples", "batches"])
@pytest.mark.parametrize("is_old", [False, True])
def test_a_resumed_run_keeps_what_its_means_are_over(tmp_path, setting, is_old, capsys):
    """A checkpoint that says nothing is of an engine whose means were over batches."""
    EpochTrainer(settings(tmp_path), LOADERS["built"](0), LOADERS["built"](0)).run()
    path = tmp_path / "checkpoints" / "checkpoint.pth"
    if is_old:
        saved = torch.load(path, weights_only=True)
        del saved["progress"]["counts_samples"]
        torch.save(saved, path)
    cfg = settings(tmp_path, max_epoch=2, resume=True, means=setting)
    trainer = EpochTrainer(cfg, LOADERS["built"](0), LOADERS["built"](0))
    trainer.run()
    kept = "batches" if is_old else "samples"
    assert trainer.validated == (16.0 if kept == "samples" else pytest.approx((7.5 + 23.5 + 32) / 3))
    assert (f"means go on over {kept}, as in the checkpoint" in capsys.readouterr().err) is (kept != setting)


def test_a_misspelt_key_is_refused(tmp_path):
    class Misspelt(ToyEpochTrainer):
        def metric_weight(self, data_dict, output_dict, result_dict):
            return {"mea": 2}

    with pytest.raises(ResultError, match="a weight for 'mea', which the step does not return; did you mean 'mae'"):
        Misspelt(settings(tmp_path)).run()
