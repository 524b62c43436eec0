"""Which batches a run sees: with one loader for two passes, lengths that change, and a `run` that follows another.

References: two separate loaders, or a run that nothing has disturbed, compared bit for bit.
"""

import os
import shutil
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tests.toys import Rows, ToyEpochTrainer, ToyIterTrainer, linear_model, rows_loader, settings
from vision3d_engine import (
    BatchTester,
    DataError,
    EpochBasedTrainer,
    IterBasedTrainer,
    SampleError,
    SingleTester,
    build_dataloader,
)
from vision3d_engine.data.prefetcher import Prefetcher

KINDS = [EpochBasedTrainer, IterBasedTrainer]


class Samples(Dataset):
    """Rows that say their index and the process that loaded them; the length can follow the epoch, or be set."""

    def __init__(self, count, lengths=None, broken=None):
        self.rows, self.count, self.lengths, self.broken = Rows(64), count, lengths or {}, broken

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index == self.broken:
            message = "a bad file"
            raise ValueError(message)
        return self.rows[index] | {"index": torch.tensor(index), "pid": torch.tensor(os.getpid())}


class Growing(Samples):
    def set_epoch(self, epoch):
        self.count = self.lengths.get(epoch, 5)


def built(data, batch_size=2, *, shuffle=False, **options):
    return build_dataloader(data, batch_size, shuffle=shuffle, **{"num_workers": 0, **options})


def plain(data, batch_size=2, **options):
    return DataLoader(data, batch_size, **options)


def listed(data, batch_size=2, **_):
    return list(plain(data, batch_size))


MAKERS = [built, plain]
ALL_MAKERS = [built, plain, listed]


def recording(kind):
    """A trainer that writes down what it sees, and whose updates depend on order, random numbers and rates."""

    class Recording(kind):
        def __init__(self, folder, train, val=None, **trainer):
            super().__init__(settings(folder, **trainer))
            self.seen, self.val_seen, self.pids, self.summaries = [], [], set(), {}
            self.fails_at = self.val_fails_at = None
            self.register_loader(train, built(Samples(4)) if val is None else val)
            model = self.register_model(linear_model())
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
            self.register_optimizer(optimizer)
            self.register_scheduler(torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 / (1 + n)))

        def train_step(self, epoch, iteration, data_dict):
            if (epoch, iteration) == self.fails_at:
                self.fails_at = None
                raise ValueError("broken off")
            self.seen.append((epoch, iteration, data_dict["index"].tolist()))
            error = self.model(data_dict["x"])[:, 0] - data_dict["y"]
            return {}, {"loss": error.square().mean() * (1 + torch.rand(()))}

        def after_train_epoch(self, epoch, summary_dict):
            self.summaries[epoch] = dict(summary_dict)

        def val_step(self, epoch, iteration, data_dict):
            if (epoch, iteration) == self.val_fails_at:
                self.val_fails_at = None
                raise ValueError("broken off")
            self.val_seen.append((epoch, iteration, data_dict["index"].tolist()))
            self.pids |= set(data_dict["pid"].tolist())
            return {}, {"mae": (self.model(data_dict["x"])[:, 0] - data_dict["y"]).abs().mean()}

    return Recording


def samples_of(seen, epoch):
    return [index for number, _, indices in seen if number == epoch for index in indices]


def iterations_of(seen, epoch):
    return [iteration for number, iteration, _ in seen if number == epoch]


# ------------------------------------------------------------------------------------ how long an epoch is


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("kind", KINDS)
def test_on_one_process_an_epoch_has_the_iterations_of_its_loader_however_that_was_made(kind, make, tmp_path):
    toy = recording(kind)(tmp_path, make(Samples(14)), max_epoch=2)
    toy.run()
    assert [(epoch, i, indices) for epoch, i, indices in toy.seen] == [
        (epoch, i, [2 * i - 2, 2 * i - 1]) for epoch in (1, 2) for i in range(1, 8)
    ]


# ------------------------------------------------------------------------------------ one loader for two passes


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("kind", KINDS)
def test_one_loader_for_training_and_validation_gives_what_two_loaders_give(kind, make, shuffle, tmp_path):
    """Such as for a test whether a model can overfit; workers that persist belong to one pass each."""
    options = {"shuffle": shuffle, "num_workers": 1, "persistent_workers": True}
    shared, run = make(Samples(24), **options), {"max_epoch": 3, "num_iters_per_epoch": 5}
    toy = recording(kind)(tmp_path / "one", shared, shared, **run)
    toy.run()
    reference = recording(kind)(tmp_path / "two", make(Samples(24), **options), make(Samples(24), **options), **run)
    reference.run()
    assert toy.seen == reference.seen
    assert toy.val_seen == reference.val_seen
    assert torch.equal(toy.model.weight, reference.model.weight)
    if kind is IterBasedTrainer and not shuffle:
        assert [indices[0] // 2 for _, _, indices in toy.seen] == [number % 12 for number in range(15)]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("kind", KINDS)
def test_persistent_validation_workers_are_started_once_for_the_run(kind, make, workers, tmp_path):
    val = make(Samples(8), num_workers=workers, persistent_workers=True)
    toy = recording(kind)(tmp_path, built(Samples(8)), val, max_epoch=3)
    toy.run()
    assert len(toy.val_seen) == 12
    assert len(toy.pids) == workers
    assert os.getpid() not in toy.pids


# ------------------------------------------------------------------------------------ run after run


@pytest.mark.parametrize("make", ALL_MAKERS)
@pytest.mark.parametrize(("steps", "number"), [(1, None), (3, 5)])
@pytest.mark.parametrize("kind", KINDS)
def test_run_again_after_an_exception_in_a_step_goes_on_with_the_open_window(kind, make, steps, number, tmp_path):
    options = {"max_epoch": 3, "grad_acc_steps": steps, "num_iters_per_epoch": number}
    straight = recording(kind)(tmp_path / "straight", make(Samples(14), shuffle=True), **options)
    straight.run()
    for at in [(1, 1), (1, 5), (3, 3)]:
        toy = recording(kind)(tmp_path / f"{at}", make(Samples(14), shuffle=True), **options)
        toy.fails_at = at
        with pytest.raises(ValueError, match="broken off"):
            toy.run()
        broken = len(toy.seen)
        toy.run()
        in_window = (at[1] - 1) % steps
        assert toy.seen[:broken] == straight.seen[:broken]
        assert toy.seen[broken:] == straight.seen[broken - in_window :]
        assert toy.total_steps == straight.total_steps
        assert torch.equal(toy.model.weight, straight.model.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_the_summary_of_an_epoch_that_was_broken_off_holds_all_its_iterations(kind, tmp_path):
    straight = recording(kind)(tmp_path / "straight", built(Samples(14)), max_epoch=2)
    straight.run()
    toy = recording(kind)(tmp_path / "broken", built(Samples(14)), max_epoch=2)
    toy.fails_at = (1, 5)
    with pytest.raises(ValueError, match="broken off"):
        toy.run()
    toy.run()
    assert toy.summaries == straight.summaries


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("kind", KINDS)
def test_run_again_after_a_sample_that_could_not_be_loaded_sees_every_batch_once(kind, make, tmp_path):
    straight = recording(kind)(tmp_path / "straight", make(Samples(12)), max_epoch=2)
    straight.run()
    data = Samples(12, broken=3)
    toy = recording(kind)(tmp_path / "broken", make(data), max_epoch=2)
    with pytest.raises(SampleError, match="a bad file"):
        toy.run()
    data.broken = None
    toy.run()
    assert toy.seen == straight.seen
    assert torch.equal(toy.model.weight, straight.model.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_run_again_after_an_exception_in_the_validation_validates_again_and_trains_nothing_twice(kind, tmp_path):
    options = {"max_epoch": 2}
    straight = recording(kind)(tmp_path / "straight", built(Samples(14), shuffle=True), **options)
    straight.run()
    toy = recording(kind)(tmp_path / "broken", built(Samples(14), shuffle=True), **options)
    toy.val_fails_at = (1, 2)
    with pytest.raises(ValueError, match="broken off"):
        toy.run()
    toy.val_seen.clear()
    toy.run()
    assert (toy.seen, toy.val_seen) == (straight.seen, straight.val_seen)
    assert torch.equal(toy.model.weight, straight.model.weight)


@pytest.mark.parametrize("make", ALL_MAKERS)
@pytest.mark.parametrize("kind", KINDS)
def test_run_after_load_goes_on_from_the_moment_of_the_checkpoint(kind, make, tmp_path):
    """In mid-epoch, at its end, and of a trainer that is itself in another epoch or was broken off."""
    base = recording(kind)

    class Copying(base):
        def before_train_step(self, epoch, iteration, data_dict):
            copy = tmp_path / f"{self.total_steps - 1}.pth"
            if self.total_steps in {4, 8, 12} and not copy.exists():  # all batches but this one are saved
                shutil.copy(self.finish_saving(), copy)

    options = {"max_epoch": 3, "save_every": "1 iterations"}
    toy = Copying(tmp_path / "run", make(Samples(14), shuffle=True), **options)
    toy.run()
    weight, seen = toy.model.weight.clone(), list(toy.seen)
    assert len(seen) == 21
    for done in (11, 3, 7):
        toy.seen.clear()
        toy.load(str(tmp_path / f"{done}.pth"))
        toy.run()
        assert toy.seen == seen[done:]
        assert toy.total_steps == 21
        assert torch.equal(toy.model.weight, weight)
    toy.load(str(tmp_path / "3.pth"))
    toy.fails_at = (2, 5)
    with pytest.raises(ValueError, match="broken off"):
        toy.run()
    toy.seen.clear()
    toy.load(str(tmp_path / "7.pth"))
    toy.run()
    assert toy.seen == seen[7:]
    assert torch.equal(toy.model.weight, weight)


# ------------------------------------------------------------------------------------ lengths that change


LENGTHS = {1: 6, 2: 11, 3: 4}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("make", MAKERS)
def test_a_pass_has_the_length_that_set_epoch_gives_the_data(make, shuffle, workers, tmp_path):
    loader = make(Growing(1, LENGTHS), shuffle=shuffle, num_workers=workers)
    toy = recording(EpochBasedTrainer)(tmp_path, loader, max_epoch=3)
    toy.run()
    for epoch, length in LENGTHS.items():
        assert sorted(samples_of(toy.seen, epoch)) == list(range(length))
        assert iterations_of(toy.seen, epoch) == list(range(1, (length + 1) // 2 + 1))


@pytest.mark.parametrize("make", MAKERS)
def test_an_epoch_by_iterations_has_the_length_that_set_epoch_gives_the_pass_it_walks(make, tmp_path):
    options = {"max_epoch": 3}
    toy = recording(IterBasedTrainer)(tmp_path / "straight", make(Growing(1, LENGTHS)), **options)
    toy.run()
    for epoch, length in LENGTHS.items():
        assert samples_of(toy.seen, epoch) == list(range(length))
    broken = recording(IterBasedTrainer)(tmp_path / "broken", make(Growing(1, LENGTHS)), **options)
    broken.fails_at = (2, 4)
    with pytest.raises(ValueError, match="broken off"):
        broken.run()
    broken.run()
    assert broken.seen == toy.seen


@pytest.mark.parametrize("make", MAKERS)
def test_a_validation_has_the_length_that_set_epoch_gives_the_data(make, tmp_path):
    toy = recording(EpochBasedTrainer)(tmp_path, built(Samples(4)), make(Growing(1, LENGTHS)), max_epoch=3)
    toy.run()
    for epoch, length in LENGTHS.items():
        assert samples_of(toy.val_seen, epoch) == list(range(length))


@pytest.mark.parametrize("make", MAKERS)
def test_each_round_of_a_stream_has_the_length_that_set_epoch_gives_the_data(make, tmp_path):
    toy = recording(IterBasedTrainer)(tmp_path, make(Growing(1, LENGTHS)), max_epoch=2, num_iters_per_epoch=5)
    toy.run()
    rounds = [list(range(length))[i : i + 2] for length in LENGTHS.values() for i in range(0, length, 2)]
    assert [indices for _, _, indices in toy.seen] == rounds[:10]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_has_the_length_that_before_train_epoch_gives_the_data(kind, make, tmp_path):
    data = Samples(6)

    class Curriculum(recording(kind)):
        def before_train_epoch(self, epoch):
            data.count = LENGTHS[epoch]

    toy = Curriculum(tmp_path, make(data), max_epoch=3)
    toy.run()
    for epoch, length in LENGTHS.items():
        assert iterations_of(toy.seen, epoch) == list(range(1, (length + 1) // 2 + 1))
        if kind is EpochBasedTrainer:
            assert samples_of(toy.seen, epoch) == list(range(length))


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_may_grow_and_shrink_before_an_epoch(kind, tmp_path):
    batches = listed(Samples(6))

    class Curriculum(recording(kind)):
        def before_train_epoch(self, epoch):
            batches[:] = listed(Samples(LENGTHS[epoch]))

    toy = Curriculum(tmp_path, batches, max_epoch=3)
    toy.run()
    for epoch, length in LENGTHS.items():
        assert iterations_of(toy.seen, epoch) == list(range(1, (length + 1) // 2 + 1))
        if kind is EpochBasedTrainer:
            assert samples_of(toy.seen, epoch) == list(range(length))


@pytest.mark.parametrize("make", ALL_MAKERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_loader_that_before_train_epoch_exchanges_is_read_in_this_epoch(kind, make, tmp_path):
    class Curriculum(recording(kind)):
        def before_train_epoch(self, epoch):
            self.train_loader = make(Samples(LENGTHS[epoch]))

    toy = Curriculum(tmp_path, make(Samples(6)), max_epoch=3)
    toy.run()
    for epoch, length in LENGTHS.items():
        assert samples_of(toy.seen, epoch) == list(range(length))
        assert iterations_of(toy.seen, epoch) == list(range(1, (length + 1) // 2 + 1))


# ------------------------------------------------------------------------------------ loops of a script's own


def with_own_loops(kind, names):
    """A trainer whose training, validation or both are plain loops that know nothing of the engine's."""

    class OwnLoops(recording(kind)):
        def count(self, name):
            self.passes = [*self.passes, (name, self.epoch)]
            assert len(self.passes) < 30, "the run does not end"

        def before_train(self):
            self.passes = []

    def train_epoch(self):
        self.count("train")
        for iteration, data_dict in enumerate(self.train_loader, start=1):
            _, result_dict = self.train_step(self.epoch, iteration, data_dict)
            result_dict["loss"].backward()
            self.optimizer_step()

    def val_epoch(self):
        self.count("val")
        with torch.no_grad():
            for iteration, data_dict in enumerate(self.val_loader, start=1):
                self.val_step(self.epoch, iteration, data_dict)

    own = {"train_epoch": train_epoch, "val_epoch": val_epoch}
    return type("OwnLoops", (OwnLoops,), {name: own[name] for name in names})


@pytest.mark.parametrize("names", [("train_epoch",), ("val_epoch",), ("train_epoch", "val_epoch")])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_with_loops_of_its_own_ends_saves_and_resumes(kind, names, tmp_path):
    own = with_own_loops(kind, names)
    straight = own(tmp_path / "straight", built(Samples(6)), max_epoch=5)
    straight.run()
    first = own(tmp_path / "run", built(Samples(6)), max_epoch=3)
    first.run()
    files = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert {"checkpoint.pth", "epoch-1.pth", "epoch-2.pth", "epoch-3.pth"} <= files
    resumed = own(tmp_path / "run", built(Samples(6)), max_epoch=5, resume=True)
    resumed.run()
    assert first.passes + resumed.passes == straight.passes
    assert {epoch for _, epoch in straight.passes} == {1, 2, 3, 4, 5}
    assert first.val_seen + resumed.val_seen == straight.val_seen
    if "train_epoch" not in names:  # a loop of one's own draws whatever the generators hold
        assert first.seen + resumed.seen == straight.seen
        assert torch.equal(resumed.model.weight, straight.model.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_of_its_own_that_was_broken_off_begins_its_epoch_again(kind, tmp_path):
    own = with_own_loops(kind, ("train_epoch",))
    toy = own(tmp_path, built(Samples(6)), max_epoch=3)
    toy.fails_at = (2, 2)
    with pytest.raises(ValueError, match="broken off"):
        toy.run()
    resumed = own(tmp_path, built(Samples(6)), max_epoch=3, resume=True)
    resumed.run()
    assert resumed.passes == [("train", 2), ("train", 3)]
    assert [(epoch, iteration) for epoch, iteration, _ in resumed.seen] == [(e, i) for e in (2, 3) for i in (1, 2, 3)]


# ------------------------------------------------------------------------------------ attributes


class _Trains:
    def __init__(self, folder, **trainer):
        super().__init__(settings(folder, **trainer))
        self.register_loader(built(Samples(6)), built(Samples(4)))
        model = self.register_model(linear_model())
        self.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
        self.save_best_model_on_metric("mae", largest=False)

    def train_step(self, epoch, iteration, data_dict):
        return {}, {"loss": (self.model(data_dict["x"])[:, 0] - data_dict["y"]).square().mean()}

    def val_step(self, epoch, iteration, data_dict):
        return {}, {"mae": (self.model(data_dict["x"])[:, 0] - data_dict["y"]).abs().mean()}


class _Tests:
    def __init__(self, folder):
        torch.save(linear_model().state_dict(), folder / "weights.pth")
        super().__init__(settings(folder), checkpoint=str(folder / "weights.pth"))
        self.register_loader(built(Samples(3), 1))
        self.register_model(linear_model())

    def test_step(self, iteration, data_dict):
        return {"prediction": self.model(data_dict["x"])[:, 0]}

    def eval_step(self, iteration, data_dict, output_dict):
        return {"mae": (output_dict["prediction"] - data_dict["y"]).abs().mean()}


def engine_parts(part, found=None):
    """Return the engine's own objects that hang on a trainer or tester, itself too, with the names of their attributes.

    Those of other libraries are left out: it is their own business what they remember.
    """
    found = {} if found is None else found
    if id(part) not in found and type(part).__module__.startswith(("vision3d_engine.", __name__)):
        found[id(part)] = (part, sorted(getattr(part, "__dict__", {})))
        for value in list(getattr(part, "__dict__", {}).values()):
            engine_parts(value, found)
    return found


@pytest.mark.parametrize("base", [EpochBasedTrainer, IterBasedTrainer, SingleTester, BatchTester])
def test_no_attribute_is_born_outside_a_constructor(base, tmp_path):
    is_trainer = base in KINDS
    part = type("Part", (_Trains if is_trainer else _Tests, base), {})(tmp_path)
    names, before = sorted(vars(part)), engine_parts(part)
    part.run()
    assert sorted(vars(part)) == names
    for inner, known in before.values():
        assert (type(inner), sorted(getattr(inner, "__dict__", {}))) == (type(inner), known)
    if is_trainer:
        resumed = type("Part", (_Trains, base), {})(tmp_path, max_epoch=2, resume=True)
        names = sorted(vars(resumed))
        resumed.run()
        assert sorted(vars(resumed)) == names


# ------------------------------------------------------------------------------------ loaders that end elsewhere


class Promising:
    """A loader that says another number of batches than it yields."""

    def __init__(self, count, length):
        self.batches, self.length = listed(Samples(2 * count)), length

    def __len__(self):
        return self.length

    def __iter__(self):
        return iter(self.batches)


def test_a_training_loader_that_ends_before_its_length_stops_the_run_before_the_epoch_counts(tmp_path):
    toy = recording(EpochBasedTrainer)(tmp_path, Promising(5, 6), max_epoch=2, grad_acc_steps=2)
    with pytest.raises(
        DataError, match=r"the training loader \(Promising\) of process 0 ended after 5 batches in epoch 1"
    ):
        toy.run()
    assert (toy.epoch, toy.summaries) == (1, {})


def test_a_validation_loader_that_ends_before_its_length_stops_the_run(tmp_path):
    toy = recording(EpochBasedTrainer)(tmp_path, built(Samples(4)), Promising(3, 4))
    with pytest.raises(DataError, match=r"the validation loader .* ended after 3 batches in epoch 1, but its len is 4"):
        toy.run()


def test_loaders_that_go_past_their_length_are_cut_there(tmp_path):
    toy = recording(EpochBasedTrainer)(tmp_path, Promising(5, 3), Promising(3, 2), max_epoch=2)
    toy.run()
    assert [iterations_of(toy.seen, epoch) for epoch in (1, 2)] == [[1, 2, 3]] * 2
    assert [iterations_of(toy.val_seen, epoch) for epoch in (1, 2)] == [[1, 2]] * 2


def test_a_loader_whose_length_is_an_estimate_can_be_trained_on_by_iterations(tmp_path):
    toy = recording(IterBasedTrainer)(tmp_path, Promising(3, 9), num_iters_per_epoch=5)
    toy.run()
    assert [indices[0] // 2 for _, _, indices in toy.seen] == [0, 1, 2, 0, 1]


@pytest.mark.parametrize("part", ["training", "validation"])
def test_a_generator_in_place_of_a_loader_is_told_in_the_second_epoch(part, tmp_path):
    generator = (batch for batch in listed(Samples(4)))
    loaders = (generator, None) if part == "training" else (built(Samples(4)), generator)
    toy = recording(EpochBasedTrainer)(tmp_path, *loaders, max_epoch=2)
    with pytest.raises(DataError, match=f"the {part} loader .generator. is an iterator.*used up.*starts anew"):
        toy.run()
    assert toy.epoch == 2


class Pairs:
    def __init__(self):
        self.index = torch.ones(2)


def with_pairs(samples):
    return torch.utils.data.default_collate(samples) | {"pairs": Pairs()}


@pytest.mark.parametrize("kind", [ToyEpochTrainer, ToyIterTrainer])
def test_a_run_says_once_what_stays_on_the_host(kind, tmp_path, monkeypatch):
    """On a device that is not there: nothing moves, so all tensors of the batch stay behind."""

    class Elsewhere(Prefetcher):
        def __init__(self, device, *args, **options):
            super().__init__(torch.device("meta"), *args, **options)

    monkeypatch.setattr("vision3d_engine.data.prefetcher.to_device", lambda batch, device: batch)
    monkeypatch.setattr("vision3d_engine.loop.train_pass.Prefetcher", Elsewhere)
    monkeypatch.setattr("vision3d_engine.loop.eval_pass.Prefetcher", Elsewhere)
    loaders = [rows_loader(count, collate_fn=with_pairs) for count in (6, 4)]
    toy = kind(settings(tmp_path, max_epoch=2), *loaders)
    toy.run()
    warnings = [line for line in Path(toy.log_file).read_text().splitlines() if "WARNING" in line and "batch[" in line]
    assert len(warnings) == 1
    assert "batch['x'], batch['y'], batch['pairs'].index are on the CPU, and the model on meta: " in warnings[0]
