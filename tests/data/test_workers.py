"""Workers that die are told of where a batch is awaited, and nowhere else."""

import multiprocessing
import os
import signal
import time

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tests.toys import ToyEpochTrainer, settings
from vision3d_engine import WorkerError, build_dataloader
from vision3d_engine.core.children import end_children
from vision3d_engine.data.workers import opened

PATIENCE_S = 30


class Rows(Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        return {"x": torch.full((3,), index / 64, dtype=torch.float64), "y": torch.tensor(1.0)}


class KillsItsWorkers(ToyEpochTrainer):
    """Kills its data workers in step 2, and waits there until that is known."""

    def train_step(self, epoch, iteration, data_dict):
        if iteration == 2:
            for worker in multiprocessing.active_children():
                worker.kill()
                worker.join(PATIENCE_S)
            time.sleep(0.05)  # here torch's handler would raise
            self.calls.append(("step went on",))
        return super().train_step(epoch, iteration, data_dict)


@pytest.mark.parametrize("make", [build_dataloader, DataLoader])
def test_the_death_of_a_worker_is_an_error_where_its_batch_is_awaited_and_not_in_a_step(make, tmp_path):
    toy = KillsItsWorkers(settings(tmp_path), make(Rows(), batch_size=1, num_workers=2))
    with pytest.raises(
        WorkerError, match=r"a data worker has died \(ended by SIGKILL\).*: .*out of memory.* fewer workers"
    ):
        toy.run()
    assert ("step went on",) in toy.calls


def seeding_with_words(worker_id):
    os.environ["WORKER_SEEDED"] = str(worker_id)


def unpicklable(samples):
    return {"x": samples, "where": lambda: os.environ["WORKER_SEEDED"]}


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_a_batch_that_cannot_be_pickled_is_an_error_and_not_awaited_for_ever(context):
    options = {"num_workers": 1, "worker_init_fn": seeding_with_words, "multiprocessing_context": context}
    loader = DataLoader(Rows(), collate_fn=unpicklable, **options)
    with pytest.raises(WorkerError, match=r"cannot hand over its batch: .*[Pp]ickle"):
        next(opened(loader))
    assert loader.worker_init_fn is seeding_with_words


def test_what_a_worker_itself_raises_stays_what_it_is(tmp_path):
    class Bad(Rows):
        def __getitem__(self, index):
            raise RuntimeError("a bad cloud")

    toy = ToyEpochTrainer(settings(tmp_path), DataLoader(Bad(), collate_fn=dict, num_workers=1))
    with pytest.raises(Exception, match="a bad cloud") as caught:
        toy.run()
    assert not isinstance(caught.value, WorkerError)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT"])
def test_workers_hear_no_signal_that_the_run_handles(name, tmp_path):
    class Signals(ToyEpochTrainer):
        def train_step(self, epoch, iteration, data_dict):
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, getattr(signal, name))
            return super().train_step(epoch, iteration, data_dict)

    toy = Signals(settings(tmp_path), build_dataloader(Rows(), 4, num_workers=2))
    toy.run()
    assert toy.epoch == toy.max_epoch


def test_workers_that_listen_to_nothing_are_ended_with_their_process():
    others = set(multiprocessing.active_children())
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        loader = build_dataloader(Rows(), 1, num_workers=1, persistent_workers=True)
        toy = ToyEpochTrainer({"trainer": {"max_epoch": 1}}, loader)
        toy.run()
        (worker,) = set(multiprocessing.active_children()) - others
        worker.terminate()
        worker.join(0.2)
        assert worker.is_alive()
        end_children()
        worker.join(PATIENCE_S)
        assert worker.exitcode == -signal.SIGKILL
    finally:
        signal.signal(signal.SIGTERM, before)
