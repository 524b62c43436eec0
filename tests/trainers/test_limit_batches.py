"""``trainer.limit_batches`` cuts epochs and validations of a script that is tried out."""

import pytest

from tests.toys import ToyEpochTrainer, ToyIterTrainer, rows_loader, settings


def steps(trainer, name):
    trainer.run()
    return [call[1:] for call in trainer.calls if call[0] == name]


def test_epochs_and_validations_end_at_the_limit(tmp_path):
    trainer = ToyEpochTrainer(settings(tmp_path, max_epoch=2, limit_batches=2), rows_loader(12), rows_loader(12))
    assert steps(trainer, "train_step") == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert [call[1:] for call in trainer.calls if call[0] == "val_step"] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    log = "".join(path.read_text() for path in (tmp_path / "logs").glob("*.log"))
    assert "more batches than its len" not in log


def test_a_limit_beyond_the_end_changes_nothing(tmp_path):
    trainer = ToyEpochTrainer(settings(tmp_path, limit_batches=9), rows_loader(6), rows_loader(6))
    assert steps(trainer, "train_step") == [(1, 1), (1, 2), (1, 3)]


def test_a_loader_that_does_not_know_its_length_is_cut_as_well(tmp_path):
    class Stream:
        def __iter__(self):
            return iter(rows_loader(12))

    trainer = ToyEpochTrainer(settings(tmp_path, limit_batches=2), Stream(), Stream())
    assert steps(trainer, "train_step") == [(1, 1), (1, 2)]


def test_a_window_that_the_limit_leaves_open_is_closed(tmp_path):
    trainer = ToyEpochTrainer(settings(tmp_path, limit_batches=3, grad_acc_steps=2), rows_loader(12))
    assert len(steps(trainer, "optimizer_step")) == 2


def test_iterations_of_a_trainer_by_iterations_are_those_it_was_given(tmp_path):
    trainer = ToyIterTrainer(settings(tmp_path, num_iters_per_epoch=4, limit_batches=1), rows_loader(6), rows_loader(6))
    assert len(steps(trainer, "train_step")) == 4
    assert [call[1:] for call in trainer.calls if call[0] == "val_step"] == [(1, 1)]


def test_a_resume_in_the_midst_of_a_cut_epoch_ends_at_the_same_limit(tmp_path):
    class Failing(ToyEpochTrainer):
        fails_at = 2

        def train_step(self, epoch, iteration, data_dict):
            if iteration == self.fails_at:
                raise InterruptedError
            return super().train_step(epoch, iteration, data_dict)

    options = {"limit_batches": 3, "save_every": "1 iterations"}
    with pytest.raises(InterruptedError):
        Failing(settings(tmp_path, **options), rows_loader(12)).run()
    resumed = ToyEpochTrainer(settings(tmp_path, resume=True, **options), rows_loader(12))
    assert steps(resumed, "train_step") == [(1, 2), (1, 3)]
