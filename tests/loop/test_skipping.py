"""Batches that are left out: by the script, for lack of memory, and updates that are not finite."""

import gc
import json
import math
import weakref

import pytest
import torch

from tests.toys import FailingBackward, Rows, linear_model, settings
from vision3d_engine import (
    BatchTester,
    ConfigError,
    EpochBasedTrainer,
    IterBasedTrainer,
    NonFiniteError,
    ResultError,
    SingleTester,
    SkipBatch,
    build_dataloader,
)

BATCHES = 7
BAD = (1, 3, 4, 5)
WAYS = ("raise", "none", "hook", "loader", "oom", "oom in backward")


def two_layers():
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()


def some_missing(samples):
    """Collate to None where the batch is to be left out."""
    numbers = [sample["number"] for sample in samples]
    if numbers[0] // 2 + 1 in BAD:
        return None
    return torch.utils.data.default_collate(samples)


class Numbered(Rows):
    def __getitem__(self, index):
        return super().__getitem__(index) | {"number": index}


class Skipping:
    """Leaves out the batches whose number is in `bad`, in one of the ways."""

    way = "raise"
    bad = BAD
    steps = 0

    def set_up(self, train_loader=None):
        collate = some_missing if self.way == "loader" else None
        loader = train_loader or build_dataloader(Numbered(2 * BATCHES), 2, num_workers=0, collate_fn=collate)
        self.register_loader(loader, build_dataloader(Rows(4), 2, num_workers=0))
        model = self.register_model(two_layers())
        self.register_optimizer(torch.optim.Adam(model.parameters(), lr=0.1))
        self.seen, self.losses = [], []

    def before_train_step(self, epoch, iteration, data_dict):
        if self.way == "hook" and iteration in self.bad:
            raise SkipBatch("no correspondences")

    def train_step(self, epoch, iteration, data_dict):
        hidden = self.model[:2](data_dict["x"])
        if iteration in self.bad:
            if self.way == "raise":
                raise SkipBatch("no correspondences")
            if self.way == "none":
                return None
            if self.way == "oom":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
            if self.way == "oom in backward":
                hidden = FailingBackward.apply(hidden)
        loss = (self.model[2](hidden)[:, 0] - data_dict["y"]).square().mean()
        return {"hidden": hidden}, {"loss": loss}

    def val_step(self, epoch, iteration, data_dict):
        return {}, {"error": (self.model(data_dict["x"])[:, 0] - data_dict["y"]).abs().mean()}

    def after_backward(self, epoch, iteration, data_dict, output_dict, result_dict):
        self.seen.append((epoch, iteration, None if (g := self.model[0].weight.grad) is None else g.clone()))

    def after_train_epoch(self, epoch, summary_dict):
        self.losses.append(dict(summary_dict))


class SkippingTrainer(Skipping, EpochBasedTrainer):
    def __init__(self, cfg, train_loader=None, **attributes):
        super().__init__(cfg)
        vars(self).update(attributes)
        self.set_up(train_loader)


class SkippingIterTrainer(Skipping, IterBasedTrainer):
    def __init__(self, cfg, train_loader=None, **attributes):
        super().__init__(cfg)
        vars(self).update(attributes)
        self.set_up(train_loader)


def loss_by_hand(model, number):
    rows = Rows(2 * BATCHES)
    part = slice(2 * number - 2, 2 * number)
    return (model(rows.x[part])[:, 0] - rows.y[part]).square().mean()


def by_hand(window, epochs=2, bad=BAD, total=BATCHES, is_bad=None):
    """A loop that continues over bad batches; a window's gradient is the mean over those that are left of it."""
    model = two_layers()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    losses = []
    for _ in range(epochs):
        for start in range(1, total + 1, window):
            left = [n for n in range(start, min(start + window, total + 1)) if n not in bad]
            if not left:
                continue
            optimizer.zero_grad()
            for number in left:
                loss = loss_by_hand(model, number)
                losses.append(float(loss.detach()))
                (loss / len(left)).backward()
            optimizer.step()
    return torch.cat([each.detach().flatten() for each in model.parameters()]), losses


def weights_of(trainer):
    return torch.cat([each.detach().flatten() for each in trainer.model.parameters()])


def rows_of(folder, phase):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row | row["values"] for row in rows if row["phase"] == phase]


def on_oom(way):
    return {"on_oom": "skip"} if "oom" in way else {}


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [SkippingTrainer, SkippingIterTrainer])
def test_what_is_left_trains_as_in_a_loop_that_continues(tmp_path, kind, way, window):
    """To 1e-14 with windows, since they divide a sum where the loop by hand divides each loss."""
    cfg = settings(tmp_path, max_epoch=2, grad_acc_steps=window, max_skipped=0.9, log_steps=3, **on_oom(way))
    cfg["trainer"]["fused_optimizer"] = False  # as the loop by hand
    trainer = kind(cfg, way=way)
    trainer.run()
    expected, losses = by_hand(window)
    assert (weights_of(trainer) - expected).abs().max() <= (0 if window == 1 else 1e-14)
    mean = sum(losses[:3]) / 3
    assert trainer.losses[0] == {"skipped": len(BAD), "loss": pytest.approx(mean, rel=1e-14)}
    assert [row.get("skipped") for row in rows_of(tmp_path, "train_epoch")] == [4, 4]
    assert [row.get("skipped", 0) for row in rows_of(tmp_path, "train")] == [2, 2, 0] * 2


@pytest.mark.parametrize("window", [2, 3])
def test_hooks_see_the_gradients_of_an_update_whose_last_batch_is_left_out(tmp_path, window):
    trainer = SkippingTrainer(settings(tmp_path, grad_acc_steps=window, max_skipped=0.9), bad=(3, 4, 6))
    trainer.run()
    updates = {2: (2, 6, 7), 3: (3, 6, 7)}[window]
    seen = {iteration: gradient for _, iteration, gradient in trainer.seen}
    assert set(seen) == {1, 2, 5, 7, *updates}
    assert all(seen[iteration].abs().sum() > 0 for iteration in updates)


def test_a_skip_says_which_samples_the_batch_had_and_why(tmp_path, capfd):
    class Shuffled(SkippingTrainer):
        def train_step(self, epoch, iteration, data_dict):
            self.numbers[iteration] = data_dict["number"].tolist()
            return super().train_step(epoch, iteration, data_dict)

    loader = build_dataloader(Numbered(2 * BATCHES), 2, num_workers=0, shuffle=True)
    trainer = Shuffled(settings(tmp_path), loader, bad=(2, 5), numbers={})
    trainer.run()
    said = [line for line in capfd.readouterr().err.splitlines() if "skipped: no" in line]
    samples = [", ".join(map(str, trainer.numbers[iteration])) for iteration in (2, 5)]
    assert f"no correspondences (training epoch 1, iteration 2, samples {samples[0]})" in said[0]
    assert f"no correspondences (training epoch 1, iteration 5, samples {samples[1]})" in said[1]


def test_only_the_first_ones_of_an_epoch_are_said_one_by_one(tmp_path, capfd):
    loader = build_dataloader(Numbered(60), 2, num_workers=0)
    SkippingTrainer(settings(tmp_path), loader, bad=range(1, 30, 2), max_skipped=1.0).run()
    said = [line for line in capfd.readouterr().err.splitlines() if "skipped: " in line]
    assert len(said) == 11  # and the line of the epoch
    assert "More of this pass are only counted" in said[9]
    assert "skipped: 15" in said[10]


def test_a_run_ends_at_the_log_line_at_which_too_many_were_skipped(tmp_path):
    trainer = SkippingTrainer(settings(tmp_path, max_skipped=0.4, log_steps=1))
    with pytest.raises(ResultError, match=r"3 of 7 training batches of epoch 1 were skipped, up to iteration 4; .*40%"):
        trainer.run()


def test_a_step_without_a_return_is_found_after_ten_batches(tmp_path):
    loader = build_dataloader(Numbered(60), 2, num_workers=0)
    trainer = SkippingTrainer(settings(tmp_path, log_steps=10), loader, way="none", bad=range(1, 100))
    with pytest.raises(ResultError, match=r"10 of 30 .* add its return"):
        trainer.run()


def test_the_limit_counts_over_a_resume(tmp_path):
    class Broken(SkippingTrainer):
        def after_train_step(self, epoch, iteration, *dicts):
            if iteration == self.breaks:
                raise KeyboardInterrupt

    cfg = settings(tmp_path, max_skipped=0.4, log_steps=2, save_every="1 iteration")
    with pytest.raises(KeyboardInterrupt):
        Broken(cfg, bad=(1, 4, 6), breaks=5).run()
    cfg["trainer"]["resume"] = True
    with pytest.raises(ResultError, match="3 of 7 training batches"):
        Broken(cfg, bad=(1, 4, 6), breaks=None).run()


@pytest.mark.parametrize("broken_after", [2, 6, 7])
@pytest.mark.parametrize("window", [1, 3])
def test_a_resume_ends_with_the_bits_and_numbers_of_a_run_that_went_through(tmp_path, window, broken_after):
    class Broken(SkippingTrainer):
        def after_train_step(self, epoch, iteration, *dicts):
            if (epoch, iteration) == (2, self.breaks):
                raise KeyboardInterrupt

    cfg = settings(tmp_path / "a", max_epoch=3, grad_acc_steps=window, max_skipped=0.9, log_steps=2)
    straight = Broken(cfg, breaks=None)
    straight.run()
    cfg = settings(tmp_path / "b", **cfg["trainer"], save_every="1 iteration")
    with pytest.raises(KeyboardInterrupt):
        Broken(cfg, breaks=broken_after).run()
    cfg["trainer"]["resume"] = True
    resumed = Broken(cfg, breaks=None)
    resumed.run()
    assert torch.equal(weights_of(resumed), weights_of(straight))
    for phase in ("train_epoch", "train"):
        a, b = ([row | {"time_s": None} for row in rows_of(tmp_path / name, phase)] for name in "ab")
        assert a == b


def test_without_memory_a_run_ends_by_default(tmp_path):
    with pytest.raises(torch.OutOfMemoryError):
        SkippingTrainer(settings(tmp_path), way="oom").run()


def test_any_other_error_of_a_step_stays_what_it_is(tmp_path):
    class Wrong(SkippingTrainer):
        def train_step(self, epoch, iteration, data_dict):
            return {}, {"loss": self.model(data_dict["x"][:, :2]).mean()}

    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
        Wrong(settings(tmp_path, on_oom="skip")).run()


@pytest.mark.parametrize("text", ["MPS backend out of memory", "DefaultCPUAllocator: can't allocate memory: you tried"])
def test_allocators_that_have_no_error_of_their_own_are_known_by_their_words(tmp_path, text):
    class Full(SkippingTrainer):
        def train_step(self, epoch, iteration, data_dict):
            if iteration == 2:
                raise RuntimeError(text)
            return super().train_step(epoch, iteration, data_dict)

    trainer = Full(settings(tmp_path, on_oom="skip"), bad=())
    trainer.run()
    assert trainer.losses[0]["skipped"] == 1


def test_what_a_failed_step_held_is_free_before_the_next_one(tmp_path):
    class Full(SkippingTrainer):
        def train_step(self, epoch, iteration, data_dict):
            if iteration == 3:
                activations = torch.ones(10)
                self.held = weakref.ref(activations)
                raise torch.OutOfMemoryError("no memory")
            if iteration == 4:
                self.is_free = self.held() is None
            return super().train_step(epoch, iteration, data_dict)

    gc.disable()
    try:
        trainer = Full(settings(tmp_path, on_oom="skip"), bad=())
        trainer.run()
    finally:
        gc.enable()
    assert trainer.is_free


def test_several_optimizers_and_shards_cannot_survive_a_lack_of_memory(tmp_path):
    class Two(SkippingTrainer):
        def set_up(self, train_loader=None):
            super().set_up(train_loader)
            self.optimizer = None
            for name, part in (("a", self.model[0]), ("b", self.model[2])):
                self.register_optimizer(torch.optim.SGD(part.parameters(), lr=0.1), name=name)

    with pytest.raises(ConfigError, match="on_oom is 'skip', which does not go with several optimizers"):
        Two(settings(tmp_path, on_oom="skip")).run()
    with pytest.raises(ConfigError, match="on_oom is 'skip' beside parallel: fsdp2"):
        SkippingTrainer(settings(tmp_path, on_oom="skip", parallel="fsdp2"))


# ------------------------------------------------------------------------------------------- not finite


class Spoilt(SkippingTrainer):
    """Some losses are NaN, and one has a gradient that is not finite although it is 0 itself."""

    nan, infinite = (2, 6), (4,)

    def train_step(self, epoch, iteration, data_dict):
        output, results = super().train_step(epoch, iteration, data_dict)
        if iteration in self.nan:
            results["loss"] = results["loss"] * math.nan
        if iteration in self.infinite:
            results["loss"] = results["loss"] + (results["loss"] * 0).sqrt()
        return output, results


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.RMSprop])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_updates_that_are_not_finite_are_skipped_as_in_a_loop_that_looks_at_each(tmp_path, capfd, kind, clip):
    class Own(Spoilt):
        def set_up(self, train_loader=None):
            super().set_up(train_loader)
            self.optimizer = None
            self.register_optimizer(kind(self.model.parameters(), lr=0.1))

    cfg = settings(tmp_path, max_epoch=2, nonfinite="skip", log_steps=3, clip_grad_norm=clip, max_skipped=0.5)
    trainer = Own(cfg, bad=())
    trainer.run()
    model, losses = two_layers(), []
    optimizer = kind(model.parameters(), lr=0.1)
    for number in [n for _ in range(2) for n in range(1, BATCHES + 1) if n not in (2, 4, 6)]:
        optimizer.zero_grad()
        loss = loss_by_hand(model, number)
        losses.append(float(loss.detach()))
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    expected = torch.cat([each.detach().flatten() for each in model.parameters()])
    # Fused kernels of torch round otherwise than the loop's.
    assert (weights_of(trainer) - expected).abs().max() <= 1e-12
    assert all(math.isfinite(row["loss"]) for row in rows_of(tmp_path, "train") + rows_of(tmp_path, "train_epoch"))
    assert [row["skipped_updates"] for row in rows_of(tmp_path, "train") if "skipped_updates" in row] == [1, 3, 4, 6]
    said = [line for line in capfd.readouterr().err.splitlines() if "skipped updates: " in line and "WARN" in line]
    assert (
        "skipped updates: 1; gradients were not finite, for the first time in training epoch 1, iteration 2" in said[0]
    )
    assert "skipped updates: 2; " in said[1]
    assert "iteration 4, samples 6, 7" in said[1]


def test_a_batch_that_spoils_a_window_costs_the_window(tmp_path):
    trainer = Spoilt(settings(tmp_path, nonfinite="skip", grad_acc_steps=2, max_skipped=1.0), bad=(), infinite=())
    trainer.run()
    expected, _ = by_hand(2, epochs=1, bad=(1, 2, 5, 6))
    assert (weights_of(trainer) - expected).abs().max() <= 1e-12


def test_too_many_updates_that_are_not_finite_end_the_run(tmp_path):
    trainer = Spoilt(settings(tmp_path, nonfinite="skip", log_steps=2, max_skipped=0.2), bad=())
    with pytest.raises(ResultError, match=r"2 of 7 updates .* skipped, up to iteration 4"):
        trainer.run()


def test_weights_stay_finite_through_a_resume_and_without_the_setting_the_run_stops(tmp_path):
    cfg = settings(tmp_path / "a", nonfinite="skip", precision="bf16", log_steps=2)
    trainer = Spoilt(cfg, bad=(), nan=(2,), infinite=())
    trainer.run()
    cfg["trainer"] |= {"resume": True, "max_epoch": 2}
    again = Spoilt(cfg, bad=(), nan=(3,), infinite=())
    again.run()
    assert rows_of(tmp_path / "a", "train")[-2]["skipped_updates"] == 2
    assert bool(weights_of(again).isfinite().all())
    with pytest.raises(NonFiniteError):
        Spoilt(settings(tmp_path / "b", log_steps=2), bad=()).run()


# ------------------------------------------------------------------------------------------- validation and tests


def test_validations_leave_batches_out_and_count_them(tmp_path, capfd):
    class Validating(SkippingTrainer):
        def val_step(self, epoch, iteration, data_dict):
            if iteration == 1:
                raise SkipBatch("an empty cloud")
            return super().val_step(epoch, iteration, data_dict)

    trainer = Validating(settings(tmp_path), bad=())
    trainer.run()
    rows = Rows(4)
    with torch.no_grad():
        error = (trainer.model(rows.x[2:])[:, 0] - rows.y[2:]).abs().mean()
    (row,) = rows_of(tmp_path, "val")
    assert (row["skipped"], row["error"]) == (1, pytest.approx(float(error), rel=1e-15))
    assert "an empty cloud (validation epoch 1, iteration 1, samples 0, 1)" in capfd.readouterr().err


@pytest.mark.parametrize("way", ["raise", "none"])
@pytest.mark.parametrize(("kind", "batch_size"), [(SingleTester, 1), (BatchTester, 3)])
def test_testers_leave_out_a_case_or_a_batch(tmp_path, kind, batch_size, way):
    class Tester(kind):
        def test_step(self, iteration, data_dict):
            if batch_size == 3 and iteration == 2:
                raise SkipBatch("no points")
            return {"y": self.model(data_dict["x"])[:, 0]}

        def eval_step(self, iteration, data_dict, output_dict):
            if iteration == 2 and way == "raise":
                raise SkipBatch("no points")
            if iteration == 2:
                return None
            self.cases.append(iteration)
            return {"error": (output_dict["y"] - data_dict["y"]).abs().mean()}

    torch.save(linear_model().state_dict(), tmp_path / "weights.pth")
    tester = Tester(settings(tmp_path), checkpoint=str(tmp_path / "weights.pth"))
    tester.register_model(linear_model())
    tester.register_loader(build_dataloader(Rows(7), batch_size, num_workers=0))
    tester.cases = []
    summary = {}
    tester.after_test_epoch = summary.update
    tester.run()
    left = [1, 3, 4, 5, 6, 7] if batch_size == 1 else [1, 3, 4]
    rows = torch.tensor([0, 2, 3, 4, 5, 6] if batch_size == 1 else [0, 2, 6])
    data = Rows(7)
    with torch.no_grad():
        errors = (linear_model()(data.x)[:, 0] - data.y).abs()[rows]
    assert tester.cases == left
    assert summary["error"] == pytest.approx(float(errors.mean()), rel=1e-15)
    assert summary["skipped"] == (1 if batch_size == 1 else 2)


def test_a_real_allocator_without_memory_costs_its_batch_alone(tmp_path):
    class Huge(SkippingTrainer):
        def train_step(self, epoch, iteration, data_dict):
            if iteration == 2:
                torch.empty(2**60)
            return super().train_step(epoch, iteration, data_dict)

    trainer = Huge(settings(tmp_path, on_oom="skip", fused_optimizer=False), bad=())
    trainer.run()
    expected, _ = by_hand(1, epochs=1, bad=(2,))
    assert torch.equal(weights_of(trainer), expected)
    assert trainer.losses[0]["skipped"] == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, whose allocator runs out of memory")
@pytest.mark.gpu
def test_a_device_without_memory_costs_its_batch_alone(tmp_path):
    class Huge(SkippingTrainer):
        def train_step(self, epoch, iteration, data_dict):
            if iteration == 2:
                return {}, {"loss": torch.ones(2**50, device=self.device).mean()}
            return super().train_step(epoch, iteration, data_dict)

    trainer = Huge(settings(tmp_path, on_oom="skip"), bad=())
    trainer.run()
    assert trainer.losses[0]["skipped"] == 1


# ------------------------------------------------------------------------------------------- beside other features


@pytest.mark.parametrize("window", [1, 2])
def test_a_batch_is_not_left_out_behind_an_update_that_has_trained_on_it(tmp_path, window):
    class Turns(SkippingTrainer):
        def set_up(self, train_loader=None):
            super().set_up(train_loader)
            self.optimizer = None
            for name, part in (("a", self.model[0]), ("b", self.model[2])):
                self.register_optimizer(torch.optim.SGD(part.parameters(), lr=0.1), name=name)

        def train_step(self, epoch, iteration, data_dict):
            if self.early and iteration in self.bad:
                raise SkipBatch("nothing")
            self.update("a", self.model(data_dict["x"]).square().mean())
            return super().train_step(epoch, iteration, data_dict)

    cfg = settings(tmp_path / "a", grad_acc_steps=window)
    with pytest.raises(ResultError, match=r"after self.update for a .* raise SkipBatch before the first self.update"):
        Turns(cfg, bad=(2,), early=False).run()
    Turns(settings(tmp_path / "b", grad_acc_steps=window), bad=(2,), early=True).run()


def test_a_validation_with_nothing_to_measure_is_warned_of_and_the_run_goes_on(tmp_path, capfd):
    class Empty(SkippingTrainer):
        def set_up(self, train_loader=None):
            super().set_up(train_loader)
            self.register_loader(self.train_loader, {"easy": self.val_loader, "hard": self.val_loader})
            self.save_best_model_on_metric("hard/error", largest=False)
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer, patience=0)
            self.register_scheduler(plateau, metric="hard/error")

        def val_step(self, epoch, iteration, data_dict):
            if self.val_name == "hard" and epoch == 2:
                raise SkipBatch("nothing to measure")
            return super().val_step(epoch, iteration, data_dict)

    cfg = settings(tmp_path, max_epoch=3, early_stopping_metric="hard/error", early_stopping_patience=2)
    Empty(cfg, bad=()).run()
    said = capfd.readouterr().err
    assert "'hard/error', which selects best models, is NaN in epoch 2" in said
    assert "'hard/error', which trainer.early_stopping_metric follows, is NaN in epoch 2" in said
    assert [row["epoch"] for row in rows_of(tmp_path, "val")] == [1, 2, 3]
    assert "hard/error" not in rows_of(tmp_path, "val")[1]


def test_a_try_out_in_which_nothing_is_trained_fails(tmp_path):
    with pytest.raises(ResultError, match=r"3 of 3 .* which are all: nothing was trained.* add its return"):
        SkippingTrainer(settings(tmp_path, fast_dev_run=3), way="none", bad=(1, 2, 3)).run()
    SkippingTrainer(settings(tmp_path, fast_dev_run=3), way="none", bad=(1, 2)).run()


@pytest.mark.parametrize("broken_at", [None, 6])
def test_updates_that_were_skipped_count_over_a_resume_and_however_many_there_are(tmp_path, broken_at):
    class Breaking(Spoilt):
        def after_train_step(self, epoch, iteration, *dicts):
            if iteration == self.breaks:
                raise KeyboardInterrupt

    loader = build_dataloader(Numbered(16), 2, num_workers=0)
    cfg = settings(tmp_path, nonfinite="skip", log_steps=8, max_skipped=0.2, save_every="1 iteration")
    trainer = Breaking(cfg, loader, bad=(), nan=(2, 3), infinite=(), breaks=broken_at)
    if broken_at:
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
        cfg["trainer"]["resume"] = True
        trainer = Breaking(cfg, loader, bad=(), nan=(2, 3), infinite=(), breaks=None)
    with pytest.raises(ResultError, match="2 of 8 updates of epoch 1 were skipped"):
        trainer.run()


def test_a_window_that_is_spoilt_and_ends_with_a_batch_that_is_left_out_is_told_once(tmp_path, capfd):
    cfg = settings(tmp_path, nonfinite="skip", grad_acc_steps=2, log_steps=2, max_skipped=1.0)
    trainer = Spoilt(cfg, bad=(2, 4, 6), nan=(1,), infinite=())
    trainer.run()
    assert "skipped updates: 1; gradients were not finite, for the first time in training epoch 1, iteration 2" in (
        capfd.readouterr().err
    )
    assert [row["grad_norm"] for row in rows_of(tmp_path, "train")][1] > 0
    assert trainer._progress.skipped_updates == 1


def test_an_update_of_several_optimizers_is_skipped_and_counted_once(tmp_path):
    class Two(Spoilt):
        def set_up(self, train_loader=None):
            super().set_up(train_loader)
            self.optimizer = None
            for name, part in (("a", self.model[0]), ("b", self.model[2])):
                self.register_optimizer(torch.optim.SGD(part.parameters(), lr=0.1), name=name)

    trainer = Two(settings(tmp_path, nonfinite="skip", log_steps=7), bad=(), infinite=())
    trainer.run()
    assert rows_of(tmp_path, "train")[0]["skipped_updates"] == 2
    assert trainer._progress.skipped_updates == 2
