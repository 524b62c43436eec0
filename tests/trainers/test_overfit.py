"""``trainer.overfit`` trains, and validates, on the same few batches in every epoch."""

from collections import Counter

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from tests.toys import Rows, ToyEpochTrainer, ToyIterTrainer, linear_model, rows_loader, settings
from vision3d_engine import CheckpointError, DataError, build_dataloader

KINDS = pytest.mark.parametrize("kind", [ToyEpochTrainer, ToyIterTrainer])


class Drawn(Dataset):
    """Samples that are augmented, and noted where they are loaded without workers."""

    def __init__(self, count=24):
        self.rows, self.loaded, self.epochs = Rows(count), Counter(), []

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        self.loaded[index] += 1
        sample = self.rows[index]
        return {**sample, "x": sample["x"] + torch.randn(3, dtype=torch.float64)}

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


class Walked:
    """Keeps the batches that steps got, and may fail in one of them."""

    def __init__(self, *args, fails_at=None, **options):
        super().__init__(*args, **options)
        self.seen, self.targets, self.validated, self.fails_at = [], [], [], fails_at

    def train_step(self, epoch, iteration, data_dict):
        if (epoch, iteration) == self.fails_at:
            raise InterruptedError
        self.seen.append(data_dict["x"].clone())
        self.targets.append(data_dict["y"])
        return super().train_step(epoch, iteration, data_dict)

    def after_train_step(self, epoch, iteration, data_dict, output_dict, result_dict):
        data_dict["x"] += 1  # what a script may do with its batch

    def val_step(self, epoch, iteration, data_dict):
        self.validated.append(data_dict["x"].clone())
        return super().val_step(epoch, iteration, data_dict)


class WalkedEpochs(Walked, ToyEpochTrainer):
    pass


class WalkedIterations(Walked, ToyIterTrainer):
    pass


WALKED = pytest.mark.parametrize("kind", [WalkedEpochs, WalkedIterations])


def drawn_loader(data=None, **options):
    return build_dataloader(data or Drawn(), 2, num_workers=0, shuffle=True, **options)


def log_of(folder):
    return "".join(path.read_text() for path in (folder / "logs").glob("*.log"))


def weights_of(trainer):
    return [parameter.tolist() for parameter in trainer.model.parameters()]


@WALKED
def test_every_epoch_trains_on_the_first_batches_of_the_first_epoch(kind, tmp_path):
    usual = kind(settings(tmp_path / "usual", num_iters_per_epoch=12), drawn_loader())
    usual.run()
    fixed = kind(settings(tmp_path / "fixed", max_epoch=3, overfit=3), drawn_loader())
    fixed.run()
    assert torch.equal(torch.stack(fixed.seen), torch.stack(usual.seen[:3] * 3))
    assert torch.equal(torch.stack(fixed.validated), torch.stack(usual.seen[:3] * 3))


@WALKED
def test_the_weights_are_those_of_a_loop_by_hand_over_these_batches(kind, tmp_path):
    trainer = kind(settings(tmp_path, max_epoch=4, overfit=2), drawn_loader(), lr=0.05)
    trainer.run()
    usual = kind(settings(tmp_path / "usual", num_iters_per_epoch=2, limit_batches=2), drawn_loader())
    usual.run()
    model = linear_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(4):
        for x, y in zip(usual.seen, usual.targets, strict=True):
            optimizer.zero_grad()
            (model(x)[:, 0] - y).square().mean().backward()
            optimizer.step()
    assert weights_of(trainer) == [parameter.tolist() for parameter in model.parameters()]


@KINDS
def test_the_loss_goes_to_zero(kind, tmp_path):
    class Adamant(kind):
        def after_train_epoch(self, epoch, summary_dict):
            self.loss = float(summary_dict["loss"])

    trainer = Adamant(settings(tmp_path, max_epoch=150, overfit=1, save_latest_n_models=1), drawn_loader(), lr=0.05)
    trainer.run()
    assert trainer.loss < 1e-4


def test_an_epoch_of_given_length_repeats_the_batches(tmp_path):
    trainer = WalkedIterations(settings(tmp_path, num_iters_per_epoch=5, overfit=2), drawn_loader())
    trainer.run()
    first, second = trainer.seen[:2]
    assert torch.equal(torch.stack(trainer.seen), torch.stack([first, second, first, second, first]))


@WALKED
def test_a_resume_in_mid_epoch_goes_on_with_the_same_batches_to_the_same_bits(kind, tmp_path):
    options = {"max_epoch": 3, "overfit": 3, "save_every": "1 iterations"}
    straight = kind(settings(tmp_path / "straight", **options), drawn_loader())
    straight.run()
    with pytest.raises(InterruptedError):
        kind(settings(tmp_path / "killed", **options), drawn_loader(), fails_at=(2, 3)).run()
    resumed = kind(settings(tmp_path / "killed", resume=True, **options), drawn_loader())
    resumed.run()
    assert torch.equal(torch.stack(resumed.seen), torch.stack(straight.seen[5:]))
    assert weights_of(resumed) == weights_of(straight)


def test_only_these_batches_are_loaded_and_each_once(tmp_path):
    data = Drawn()
    WalkedEpochs(settings(tmp_path, max_epoch=3, overfit=2), drawn_loader(data)).run()
    assert sorted(data.loaded.values()) == [1] * 4
    assert set(data.epochs) == {1}


@pytest.mark.parametrize("make", [DataLoader, build_dataloader])
def test_workers_load_no_other_batches(make, tmp_path):
    class Marking(Rows):
        def __getitem__(self, index):
            (tmp_path / f"loaded-{index}").touch()
            return super().__getitem__(index)

    loader = make(Marking(24), batch_size=2, num_workers=2)
    ToyEpochTrainer(settings(tmp_path, max_epoch=2, overfit=3), loader).run()
    assert {path.name for path in tmp_path.glob("loaded-*")} == {f"loaded-{index}" for index in range(6)}


def test_workers_load_no_other_batches_of_a_batch_sampler_of_the_users(tmp_path):
    class Marking(Rows):
        def __getitem__(self, index):
            (tmp_path / f"loaded-{index}").touch()
            return super().__getitem__(index)

    batches = [[5, 1, 2], [3], [4], [6, 7]]
    loader = build_dataloader(Marking(24), num_workers=1, batch_sampler=batches)
    ToyEpochTrainer(settings(tmp_path, max_epoch=2, overfit=2), loader).run()
    assert {path.name for path in tmp_path.glob("loaded-*")} == {f"loaded-{index}" for index in (1, 2, 3, 5)}


class Endless(IterableDataset):
    """A data set that draws from a generator that nobody can seed."""

    def __init__(self):
        self.generator = torch.Generator()

    def __iter__(self):
        while True:
            yield {
                "x": torch.randn(3, generator=self.generator, dtype=torch.float64),
                "y": torch.zeros((), dtype=torch.float64),
            }


class Stateful:
    """A loader that saves where it stands, and goes on from there."""

    def __init__(self, batches):
        self.batches, self.place = batches, 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        while self.place < len(self.batches):
            self.place += 1
            yield self.batches[self.place - 1]
        self.place = 0

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


@WALKED
@pytest.mark.parametrize(
    "make",
    [
        lambda: list(rows_loader(12)),
        lambda: (batch for batch in rows_loader(12)),
        lambda: DataLoader(Endless(), batch_size=2),
        lambda: Stateful(list(rows_loader(12))),
        lambda: rows_loader(12, shuffle=True),
    ],
    ids=["list", "generator", "endless", "stateful", "torch"],
)
def test_any_loader_repeats_itself(make, kind, tmp_path):
    length = {"num_iters_per_epoch": 2} if kind is WalkedIterations else {}
    trainer = kind(settings(tmp_path, max_epoch=3, overfit=2, **length))
    trainer.train_loader = make()
    trainer.run()
    assert torch.equal(torch.stack(trainer.seen), torch.stack(trainer.seen[:2] * 3))
    assert torch.equal(torch.stack(trainer.validated), torch.stack(trainer.seen[:2] * 3))


def test_more_batches_than_there_are_means_all_of_them_and_is_said(tmp_path):
    trainer = WalkedEpochs(settings(tmp_path, max_epoch=2, overfit=50), drawn_loader())
    trainer.run()
    assert len(trainer.seen) == 24
    assert "the same 12 batches of the training loader (DataLoader), all that it has (asked for: 50)" in log_of(
        tmp_path
    )


def test_the_log_says_once_what_is_trained_and_validated_on(tmp_path):
    ToyEpochTrainer(settings(tmp_path, max_epoch=3, overfit=2), drawn_loader()).run()
    assert log_of(tmp_path).count("overfit: every epoch trains on the same 2 batches") == 1


def test_a_batch_that_cannot_be_copied_is_a_readable_error(tmp_path):
    batches = [{**batch, "x": batch["x"].requires_grad_() * 1} for batch in rows_loader(4)]
    with pytest.raises(DataError, match=r"a batch of the training loader .list. cannot be copied"):
        ToyEpochTrainer(settings(tmp_path, overfit=2), batches).run()


@pytest.mark.parametrize(("first", "second", "text"), [(2, 0, "overfit was 2, is 0"), (0, 2, "overfit was 0, is 2")])
def test_a_resume_of_such_a_run_without_it_is_refused(first, second, text, tmp_path):
    ToyEpochTrainer(settings(tmp_path, overfit=first), drawn_loader()).run()
    resumed = ToyEpochTrainer(settings(tmp_path, max_epoch=2, resume=True, overfit=second), drawn_loader())
    with pytest.raises(CheckpointError, match=text):
        resumed.run()


def test_the_flag_sets_it(argv, tmp_path):
    argv("--overfit", "1")
    trainer = WalkedEpochs(settings(tmp_path, max_epoch=2), drawn_loader())
    trainer.run()
    assert (len(trainer.seen), trainer.args.overfit) == (2, 1)
