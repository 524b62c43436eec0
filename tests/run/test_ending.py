"""When a run ends: so many updates, a request of the script; and how it is extended."""

import json

import pytest
import torch

from tests.toys import Rows, ToyEpochTrainer, ToyIterTrainer, linear_model, rows_loader, settings
from vision3d_engine import ConfigError, Hook, RegistrationError, build_dataloader, build_scheduler

KINDS = [ToyEpochTrainer, ToyIterTrainer]
BATCHES = 5  # of an epoch


class KilledError(Exception):
    """What ends a process in these tests."""


class Acts(Hook):
    """Does something at one moment, given by its name and the numbers that it is called with."""

    def __init__(self, moment, numbers, act):
        setattr(self, moment, lambda *args: act() if [a for a in args if isinstance(a, int)] == numbers else None)


def train(kind, folder, *hooks, lr=0.1, **options):
    """Run a trainer with hooks made of it, and return it, also when it is killed."""
    options = {"log_steps": 2, **options}
    toy = kind(settings(folder, **options), build_dataloader(Rows(10), 2, shuffle=True, num_workers=0), lr=lr)
    toy.means = []
    toy.save_best_model_on_metric("mae", largest=False)
    toy.add_hook(Means())
    for moment, numbers, act in hooks:
        toy.add_hook(Acts(moment, numbers, lambda act=act: act(toy)))
    try:
        toy.run()
    except KilledError:
        toy.is_killed = True
    return toy


class Means(Hook):
    def after_train_epoch(self, epoch, summary_dict):
        self.owner.means.append((epoch, dict(summary_dict)))


def kill(toy):
    raise KilledError


def stop(toy):
    toy.stop("enough")


def steps_of(toy):
    return [call[1:] for call in toy.calls if call[0] == "train_step"]


def names_of(toy):
    return [call[0] for call in toy.calls]


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_times(rows):
    return [{key: value for key, value in row.items() if key != "time_s"} for row in rows]


def trained_by_hand(orders, updates, accumulated):
    """Return the weights after so many updates of a plain loop over batches in these orders."""
    model, done = linear_model(), 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batches in orders:
        for start in range(0, len(batches), accumulated):
            window = batches[start : start + accumulated]
            for batch in window:
                error = model(batch["x"])[:, 0] - batch["y"]
                error.square().mean().backward()
            for parameter in model.parameters():
                parameter.grad /= len(window)
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            if done == updates:
                return model
    raise AssertionError


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("updates", [1, 4, 6])
def test_a_run_ends_after_so_many_updates_with_the_bits_of_a_plain_loop(kind, accumulated, updates, tmp_path):
    toy = kind(
        settings(tmp_path, max_epoch=None, max_updates=updates, grad_acc_steps=accumulated, log_steps=3),
        rows_loader(10, 2),
    )
    toy.run()
    batches = list(rows_loader(10, 2))
    assert torch.equal(toy.model.weight, trained_by_hand([batches] * 8, updates, accumulated).weight)
    assert names_of(toy).count("optimizer_step") == updates
    assert names_of(toy)[-1] == "after_train"


def test_an_end_in_mid_epoch_closes_the_epoch_with_the_means_so_far(tmp_path, capsys):
    toy = train(ToyEpochTrainer, tmp_path, max_epoch=None, max_updates=7)
    assert steps_of(toy) == [(1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (2, 1), (2, 2)]
    behind = ["after_train_epoch", "before_val_epoch", "after_val_epoch", "after_train"]
    assert [name for name in names_of(toy) if name in behind][-4:] == behind
    saved = torch.load(tmp_path / "checkpoints" / "epoch-2.pth", weights_only=True)
    assert torch.equal(saved["model"]["weight"], toy.model.weight)
    rows = rows_of(tmp_path)
    train_rows = [row for row in rows if row["phase"] == "train" and row["epoch"] == 2]
    (epoch_row,) = [row for row in rows if row["phase"] == "train_epoch" and row["epoch"] == 2]
    assert epoch_row["values"]["loss"] == pytest.approx(train_rows[0]["values"]["loss"])
    said = capsys.readouterr().err
    assert said.count("the run ends (epoch 2, total_steps 7, 7 updates): 7 updates are made.") == 1
    assert "[Val] epoch: 2, iter: " in said


@pytest.mark.parametrize(("limits", "steps"), [({"max_epoch": 1, "max_updates": 7}, 5), ({"max_epoch": 2}, 10)])
def test_whichever_comes_first_ends_the_run(limits, steps, tmp_path):
    assert train(ToyEpochTrainer, tmp_path, **limits).total_steps == steps


def test_neither_given_trains_ten_epochs(tmp_path):
    cfg = settings(tmp_path)
    del cfg["trainer"]["max_epoch"]
    assert ToyEpochTrainer(cfg).max_epoch == 10


def test_a_length_of_nothing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="max_epoch is None, and max_updates is not given"):
        ToyEpochTrainer(settings(tmp_path, max_epoch=None))


def test_updates_that_a_loop_of_the_scripts_own_does_not_make_cannot_end_a_run(tmp_path):
    class Own(ToyEpochTrainer):
        def train_epoch(self):
            pass

    with pytest.raises(ConfigError, match=r"give trainer\.max_epoch, or end the run by stop\(\)"):
        Own(settings(tmp_path, max_epoch=None, max_updates=3)).run()


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_the_time_left_is_that_until_the_last_update(kind, accumulated, tmp_path, monkeypatch):
    lefts = []
    monkeypatch.setattr(
        "vision3d_engine.logs.log_line.throughput_text", lambda rate, left, *_: lefts.append(left) or ""
    )
    toy = train(kind, tmp_path, max_epoch=None, max_updates=7, grad_acc_steps=accumulated, log_steps=1)
    assert lefts == list(range(toy.total_steps - 1, -1, -1))


@pytest.mark.parametrize(("interval", "steps"), [("update", 7), ("epoch", 2)])
def test_a_schedule_whose_length_is_that_of_the_run_knows_the_updates(interval, steps, tmp_path):
    toy = ToyEpochTrainer(settings(tmp_path, max_epoch=None, max_updates=7, log_steps=1), rows_loader(10, 2))
    toy.scheduler = None
    schedule = {"type": "CosineAnnealingLR", "interval": interval}
    toy.register_scheduler(build_scheduler(toy.optimizer, {"scheduler": schedule}))
    toy.run()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    expected, by_hand = [], torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(7):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if interval == "update" or step == BATCHES - 1:
            by_hand.step()
    assert [row["lr"] for row in rows_of(tmp_path) if row["phase"] == "train"] == expected


# ------------------------------------------------------------------------------------------------- extending


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"grad_acc_steps": 2, "ema_decay": 0.9}])
def test_a_run_that_is_extended_by_updates_ends_with_the_bits_and_rows_of_one_that_never_ended(kind, options, tmp_path):
    options = {"max_epoch": None, "log_steps": 3, **options}
    straight = train(kind, tmp_path / "straight", max_updates=8, **options)
    train(kind, tmp_path / "extended", max_updates=4, **options)
    extended = train(kind, tmp_path / "extended", max_updates=8, resume=True, **options)
    assert torch.equal(straight.model.weight, extended.model.weight)
    assert straight.means[-1] == extended.means[-1]
    assert without_times(rows_of(tmp_path / "straight")) == without_times(rows_of(tmp_path / "extended"))


def test_a_run_that_is_extended_by_epochs_ends_with_the_bits_of_one_that_had_them_from_the_start(tmp_path):
    straight = train(ToyEpochTrainer, tmp_path / "straight", max_epoch=3)
    train(ToyEpochTrainer, tmp_path / "extended", max_epoch=1)
    extended = train(ToyEpochTrainer, tmp_path / "extended", max_epoch=3, resume=True)
    assert torch.equal(straight.model.weight, extended.model.weight)
    assert without_times(rows_of(tmp_path / "straight")) == without_times(rows_of(tmp_path / "extended"))


@pytest.mark.parametrize(
    ("limits", "way"),
    [({"max_epoch": 1}, "trainer.max_epoch"), ({"max_epoch": None, "max_updates": 3}, "trainer.max_updates")],
)
def test_a_finished_run_that_is_resumed_trains_and_validates_nothing_and_says_how_to_extend_it(
    limits, way, tmp_path, capsys
):
    train(ToyEpochTrainer, tmp_path, **limits)
    before = (tmp_path / "checkpoints" / "checkpoint.pth").read_bytes()
    again = train(ToyEpochTrainer, tmp_path, resume=True, **limits)
    assert names_of(again) == ["before_train", "after_train"]
    said = capsys.readouterr().err
    assert said.count("the run is finished, nothing is trained") == 1
    assert f"--resume with a larger {way} goes on" in said
    assert (tmp_path / "checkpoints" / "checkpoint.pth").read_bytes() == before


def test_what_hooks_keep_of_an_epoch_that_was_cut_is_not_counted_twice_when_it_is_extended(tmp_path):
    class Counts(Hook):
        validations = 0

        def after_val_epoch(self, epoch, summary_dict):
            self.validations += 1

        def state_dict(self):
            return {"validations": self.validations}

        def load_state_dict(self, state):
            self.validations = state["validations"]

    def counted(folder, updates, resume):
        toy = ToyEpochTrainer(settings(folder, max_epoch=None, max_updates=updates, resume=resume), rows_loader(10, 2))
        counts = toy.add_hook(Counts())
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(toy.optimizer, "max", 0.5, 0)
        toy.scheduler = None
        toy.register_scheduler(plateau, metric="mae")
        toy.run()
        return counts.validations, plateau.state_dict()

    straight = counted(tmp_path / "straight", 10, resume=False)
    assert counted(tmp_path / "cut", 7, resume=False)[0] == 2
    assert counted(tmp_path / "cut", 10, resume=True) == straight


class Stateful:
    """A loader that saves its own position, as torchdata's StatefulDataLoader does."""

    def __init__(self):
        self.batches, self.next = list(rows_loader(10, 2)), 0

    def __iter__(self):
        while self.next < BATCHES:
            self.next += 1
            yield self.batches[self.next - 1]
        self.next = 0

    def __len__(self):
        return BATCHES

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


def test_a_loader_with_a_state_of_its_own_goes_on_behind_the_cut(tmp_path):
    def trained(folder, updates, **options):
        toy = ToyEpochTrainer(settings(folder, max_epoch=None, max_updates=updates, **options), Stateful())
        toy.run()
        return toy.model.weight

    straight = trained(tmp_path / "straight", 9)
    trained(tmp_path / "cut", 7)
    assert torch.equal(trained(tmp_path / "cut", 9, resume=True), straight)


@pytest.mark.parametrize("kind", KINDS)
def test_workers_that_had_loaded_ahead_of_the_cut_change_nothing(kind, tmp_path):
    def trained(folder, updates, **options):
        loader = build_dataloader(Rows(10), 2, shuffle=True, num_workers=1, persistent_workers=True)
        toy = kind(settings(folder, max_epoch=None, max_updates=updates, **options), loader, loader)
        toy.run()
        return toy.model.weight

    straight = trained(tmp_path / "straight", 9)
    trained(tmp_path / "cut", 7)
    assert torch.equal(trained(tmp_path / "cut", 9, resume=True), straight)


# ------------------------------------------------------------------------------------------------- asked to stop


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("moment", "numbers", "accumulated", "steps"),
    [
        ("before_train", [], 1, 0),
        ("before_train_epoch", [2], 1, 7),
        ("before_train_step", [1, 1], 1, 2),
        ("after_backward", [1, 2], 1, 2),
        ("after_train_step", [1, 2], 2, 2),
        ("after_train_step", [1, 1], 3, 3),
        ("after_log", [1, 2], 1, 4),
        ("after_train_step", [1, 5], 1, 5),
        ("after_train_step", [2, 4], 3, 10),
        ("after_train_epoch", [2], 1, 10),
        ("before_val_epoch", [1], 1, 5),
        ("after_val_step", [1, 1], 1, 5),
        ("after_val_epoch", [2], 1, 10),
    ],
)
def test_stop_ends_the_run_at_the_next_log_line_or_at_the_end_of_the_epoch(
    kind, moment, numbers, accumulated, steps, tmp_path, capsys
):
    toy = train(kind, tmp_path, (moment, numbers, stop), max_epoch=4, grad_acc_steps=accumulated)
    assert toy.total_steps == steps
    assert names_of(toy)[-1] == "after_train"
    assert names_of(toy).count("after_train_epoch") == names_of(toy).count("after_val_epoch") == -(-steps // BATCHES)
    assert capsys.readouterr().err.count("stop() was called: enough. --resume goes on") == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("moment", "numbers"), [("after_train_step", [2, 1]), ("after_val_epoch", [2])])
def test_a_resume_after_stop_goes_on_to_the_same_bits(kind, moment, numbers, tmp_path):
    straight = train(kind, tmp_path / "straight", max_epoch=3)
    stopped = train(kind, tmp_path / "stopped", (moment, numbers, stop), max_epoch=3)
    assert stopped.total_steps < straight.total_steps
    resumed = train(kind, tmp_path / "stopped", max_epoch=3, resume=True)
    assert torch.equal(straight.model.weight, resumed.model.weight)
    assert straight.means[-1] == resumed.means[-1]
    assert without_times(rows_of(tmp_path / "straight")) == without_times(rows_of(tmp_path / "stopped"))


def test_run_again_after_stop_goes_on_in_the_same_process(tmp_path):
    straight = train(ToyEpochTrainer, tmp_path / "straight", max_epoch=3)
    toy = train(ToyEpochTrainer, tmp_path / "stopped", ("after_train_step", [2, 1], stop), max_epoch=3)
    assert toy.total_steps == 7
    toy.run()
    assert torch.equal(straight.model.weight, toy.model.weight)
    assert straight.means[-1] == toy.means[-1]


KILLS = [
    ("after_train_step", [2, 1]),
    ("before_train_step", [2, 2]),
    ("after_train_step", [2, 2]),
    ("after_train_epoch", [2]),
    ("before_val_epoch", [2]),
    ("after_val_step", [2, 2]),
    ("after_val_epoch", [2]),
]


@pytest.mark.parametrize("ending", ["stop", "late stop", "updates"])
@pytest.mark.parametrize(("moment", "numbers"), KILLS)
def test_a_run_that_is_killed_around_its_end_ends_at_the_same_place_when_it_is_resumed(
    ending, moment, numbers, tmp_path
):
    stops = {"stop": [("after_train_step", [2, 1], stop)], "late stop": [("after_train_step", [2, 5], stop)]}
    hooks, steps = stops.get(ending, []), 10 if ending == "late stop" else 7
    options = {"save_every": "1 iteration", "max_epoch": 3, **({} if hooks else {"max_updates": 7})}
    straight = train(ToyEpochTrainer, tmp_path / "straight", *hooks, **options)
    killed = train(ToyEpochTrainer, tmp_path / "killed", *hooks, (moment, numbers, kill), **options)
    assert killed.is_killed
    resumed = train(ToyEpochTrainer, tmp_path / "killed", *hooks, resume=True, **options)
    assert resumed.total_steps == straight.total_steps == steps
    assert torch.equal(straight.model.weight, resumed.model.weight)
    assert resumed.means == straight.means[-1:]
    assert names_of(resumed)[-1] == "after_train"
    assert without_times(rows_of(tmp_path / "straight")) == without_times(rows_of(tmp_path / "killed"))


@pytest.mark.parametrize(("moment", "numbers"), [("after_train_step", [2, 1]), ("after_val_epoch", [2])])
def test_a_stopped_run_that_is_killed_in_after_train_makes_up_for_it_and_only_then_goes_on(moment, numbers, tmp_path):
    straight = train(ToyEpochTrainer, tmp_path / "straight", max_epoch=3)
    hooks = [(moment, numbers, stop), ("after_train", [], kill)]
    killed = train(ToyEpochTrainer, tmp_path / "killed", *hooks, max_epoch=3)
    assert killed.is_killed
    resumed = train(ToyEpochTrainer, tmp_path / "killed", max_epoch=3, resume=True)
    assert names_of(resumed) == ["before_train", "after_train"]
    assert resumed.total_steps == killed.total_steps
    extended = train(ToyEpochTrainer, tmp_path / "killed", max_epoch=3, resume=True)
    assert extended.total_steps == 15
    assert torch.equal(straight.model.weight, extended.model.weight)


def test_stop_is_for_hooks_and_steps_of_a_run(tmp_path):
    toy = ToyEpochTrainer(settings(tmp_path))
    with pytest.raises(RegistrationError, match=r"stop\(\) ends a run, and none is running"):
        toy.stop()


def test_stop_in_after_train_does_not_reach_the_next_run(tmp_path):
    toy = train(ToyEpochTrainer, tmp_path, ("after_train", [], stop), max_epoch=2)
    toy.run(only_validation=True)
    assert toy.total_steps == 10


def test_a_loop_of_the_scripts_own_is_ended_by_stop_at_the_end_of_its_epoch(tmp_path):
    class Own(ToyEpochTrainer):
        def train_epoch(self):
            if self.epoch == 2:
                self.stop()

    toy = Own(settings(tmp_path, max_epoch=5))
    toy.run()
    assert toy.epoch == 2


# ------------------------------------------------------------------------------------------- with validations within


class Constant(ToyEpochTrainer):
    """Its validations never get better; the second one may be broken off in its second batch."""

    validations = 0
    is_broken = False

    def before_val_epoch(self, epoch):
        super().before_val_epoch(epoch)
        self.validations += 1

    def val_step(self, epoch, iteration, data_dict):
        if self.is_broken and (self.validations, iteration) == (2, 2):
            raise KilledError
        return {}, {"mae": torch.ones(())}


@pytest.mark.parametrize(
    "end",
    [{"max_updates": 4}, {"early_stopping_metric": "mae", "early_stopping_mode": "min", "early_stopping_patience": 1}],
)
def test_a_run_killed_in_a_validation_at_its_very_end_ends_there_when_it_is_resumed(end, tmp_path):
    options = {"val_every": "2 iterations", "log_steps": 3, "max_epoch": 3, **end}

    def made(name, **further):
        return Constant(settings(tmp_path / name, **options, **further), rows_loader(12, 2))

    straight = made("straight")
    straight.run()
    broken = made("broken")
    broken.is_broken = True
    with pytest.raises(KilledError):
        broken.run()
    resumed = made("broken", resume=True)
    resumed.run()
    assert torch.equal(resumed.model.weight, straight.model.weight)
    assert resumed.total_steps == straight.total_steps == 4
    rows = [without_times(rows_of(tmp_path / name)) for name in ("straight", "broken")]
    assert rows[0] == rows[1]
    assert (tmp_path / "broken" / "checkpoints" / "epoch-1.pth").exists()
    assert names_of(resumed)[-1] == "after_train"
    finished = made("broken", resume=True)
    finished.run()
    assert "train_step" not in names_of(finished)
    assert "before_val_epoch" not in names_of(finished)


@pytest.mark.parametrize("cadence", ["1 epoch", "2 iterations"])
def test_a_finished_run_that_is_resumed_keeps_the_rows_of_its_end_and_one_that_is_extended_does_not(tmp_path, cadence):
    options = {"log_steps": 3, "val_every": cadence, "max_epoch": 3}
    train(ToyEpochTrainer, tmp_path / "a", max_updates=4, **options)
    ended = rows_of(tmp_path / "a")
    assert [row["phase"] for row in ended].count("train_epoch") == 1
    for _ in range(2):
        train(ToyEpochTrainer, tmp_path / "a", max_updates=4, resume=True, **options)
        assert rows_of(tmp_path / "a") == ended
    train(ToyEpochTrainer, tmp_path / "a", max_updates=7, resume=True, **options)
    train(ToyEpochTrainer, tmp_path / "b", max_updates=7, **options)
    assert without_times(rows_of(tmp_path / "a")) == without_times(rows_of(tmp_path / "b"))
