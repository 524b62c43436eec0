"""The line that says what the time of an epoch goes into: what is planted is named, with the setting that helps."""

import re
import time

import pytest
import torch

from vision3d_engine import EpochBasedTrainer, Hook, SkipBatch
from vision3d_engine.loop import epoch_time, step_sampler
from vision3d_engine.metrics.epoch_times import EpochShares, EpochTimes
from vision3d_engine.metrics.step_clock import StepClock
from vision3d_engine.metrics.stopwatch import Stopwatch

NAP_S, STEPS = 0.1, 20  # a step without naps takes a hundredth of one


class SlowBackward(torch.autograd.Function):
    @staticmethod
    def forward(_ctx, x):
        return x.clone()

    @staticmethod
    def backward(_ctx, gradient):
        time.sleep(NAP_S)
        return gradient


class Batches(list):
    nap_s = 0.0

    def __iter__(self):
        for batch in super().__iter__():
            time.sleep(self.nap_s)
            yield batch


class Sleepy(EpochBasedTrainer):
    """Naps in one part of its work."""

    def __init__(self, folder, planted, **settings):
        self.planted = planted
        defaults = {"max_epoch": 1, "log_steps": 5, "val_every": "1 epoch"}
        super().__init__({"exp": {"output_dir": str(folder)}, "trainer": {**defaults, **settings}})
        batches = Batches({"x": torch.full((2, 3), 0.1)} for _ in range(STEPS))
        batches.nap_s = NAP_S if planted == "data" else 0.0
        self.register_loader(batches, [{"x": torch.zeros(2, 3)}])
        model = self.register_model(torch.nn.Linear(3, 1))
        self.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.01))

    def nap(self, part, naps=1):
        time.sleep(NAP_S * naps if part == self.planted else 0)

    def train_step(self, _epoch, _iteration, data_dict):
        self.nap("forward")
        output = self.model(data_dict["x"])
        return {}, {"loss": (SlowBackward.apply(output) if self.planted == "backward" else output).square().mean()}

    def val_step(self, _epoch, _iteration, data_dict):
        self.nap("validation", STEPS)
        return {}, {"loss": self.model(data_dict["x"]).square().mean()}

    def optimizer_step(self, name=None):
        self.nap("optimizer")
        super().optimizer_step(name)

    def after_train_step(self, *_):
        self.nap("hooks")

    def text(self):
        return "".join(path.read_text() for path in sorted((self._session.folders.logs).glob("train-*.log")))

    def lines(self):
        return [line for line in self.text().splitlines() if "[Time] epoch: " in line]

    def shares(self):
        return {name: int(share) / 100 for name, share in re.findall(r"(\w+) (\d+)%", self.lines()[-1])}


@pytest.mark.parametrize("settings", [{}, {"grad_acc_steps": 2}])
@pytest.mark.parametrize("part", ["data", "forward", "backward", "hooks", "optimizer", "validation"])
def test_the_part_that_sleeps_has_most_of_the_epoch(tmp_path, part, settings):
    trainer = Sleepy(tmp_path, part, **settings)
    trainer.run()
    shares = trainer.shares()
    assert max(shares, key=shares.__getitem__) == part, shares
    assert shares[part] > 0.6
    assert sum(shares.values()) == pytest.approx(1, abs=0.04)


@pytest.mark.parametrize(
    ("part", "setting"),
    [
        ("forward", "the forward passes of training: --profile 10:20"),
        ("backward", "the backward passes: --profile 10:20"),
        ("hooks", "the hooks of the script: after_train_step took most of it; do what need not happen in each step in"),
        (
            "optimizer",
            "the updates of the optimizer: make fewer updates of larger batches, or by trainer.grad_acc_steps",
        ),
        ("validation", "validations: validate less often by trainer.val_every"),
    ],
)
def test_the_bottleneck_is_named_once_with_what_helps(tmp_path, part, setting):
    trainer = Sleepy(tmp_path, part, max_epoch=2)
    trainer.run()
    assert trainer.text().count(f"went into {setting}") == 1


def test_waits_for_data_are_named_by_the_hint_of_the_log_lines_alone(tmp_path):
    batches = torch.utils.data.DataLoader(SlowRows(), batch_size=1)
    trainer = Sleepy(tmp_path, "nothing")
    trainer.train_loader = batches
    trainer.run()
    text = trainer.text()
    assert text.count("spent waiting for data") == 1
    assert "went into" not in text


class SlowRows(torch.utils.data.Dataset):
    def __len__(self):
        return STEPS

    def __getitem__(self, index):
        time.sleep(NAP_S)
        return {"x": torch.full((3,), index / STEPS)}


def test_a_checkpoint_that_is_waited_for_is_named(tmp_path):
    class Slow(torch.nn.Linear):
        def state_dict(self, *args, **options):
            time.sleep(1)
            return super().state_dict(*args, **options)

    trainer = Sleepy(tmp_path, "nothing", async_save=False)
    trainer.model = None
    model = trainer.register_model(Slow(3, 1))
    trainer.optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    trainer.run()
    assert trainer.shares()["checkpoints"] > 0.6
    assert "waiting for checkpoints to be copied or written: set trainer.async_save to true" in trainer.text()


def test_hooks_around_the_steps_count_as_hooks(tmp_path):
    class Naps(Hook):
        def after_log(self, *_):
            time.sleep(NAP_S)

        def after_train_epoch(self, *_):
            time.sleep(10 * NAP_S)

    trainer = Sleepy(tmp_path, "nothing")
    trainer.add_hook(Naps())
    trainer.run()
    assert trainer.shares()["hooks"] > 0.6


def test_a_hook_that_is_slow_in_a_few_steps_alone_is_named_whichever_steps_are_measured(tmp_path):
    class Rare(Sleepy):
        def after_train_step(self, _epoch, iteration, *_):
            time.sleep(8 * NAP_S if iteration % 10 == 8 else 0)

    trainer = Rare(tmp_path, "nothing")
    trainer.run()
    assert trainer.shares()["hooks"] > 0.6
    assert "the hooks of the script: after_train_step took most of it" in trainer.text()


@pytest.mark.parametrize(
    ("moment", "advice"),
    [("after_log", "trainer.log_steps be larger"), ("after_train_epoch", "do less in it, or not in each epoch")],
)
def test_of_slow_hooks_outside_of_steps_the_moment_is_named_with_its_own_advice(tmp_path, moment, advice):
    trainer = Sleepy(tmp_path, "nothing")
    trainer.add_hook(type("Naps", (Hook,), {moment: lambda *_: time.sleep(15 * NAP_S)})())
    trainer.run()
    (said,) = (line for line in trainer.text().splitlines() if "went into" in line)
    assert f"the hooks of the script: {moment} took most of it; " in said
    assert said.endswith(advice)


def test_a_batch_that_a_hook_leaves_out_spoils_no_time(tmp_path):
    class Leaves(Sleepy):
        def before_train_step(self, _epoch, iteration, *_):
            if iteration == 3:
                raise SkipBatch("empty")

    trainer = Leaves(tmp_path, "forward")
    trainer.run()
    assert trainer.shares()["forward"] > 0.6


def test_captures_that_cost_much_are_named_with_what_they_capture_and_no_hook_is(tmp_path, monkeypatch):
    trainer = Sleepy(tmp_path, "nothing")
    trainer.model = None
    trainer.register_model(torch.nn.Sequential(torch.nn.Linear(3, 1)))
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.01)
    trainer.capture("0", every=3, histograms=True)
    monkeypatch.setattr(trainer._context.writers, "histograms", lambda *_: time.sleep(2 * NAP_S))
    trainer.run()
    assert trainer.shares()["captures"] > 0.6
    assert "hooks" not in trainer.shares()
    assert "let every= be larger, or leave out histograms and clouds, for '0' (every=3)" in trainer.text()


def test_a_hook_that_sleeps_in_an_update_of_one_optimizer_alone_is_not_forward(tmp_path):
    class TakingTurns(Sleepy):
        def __init__(self, folder, planted):
            super().__init__(folder, planted)
            self.model = self.optimizer = None
            for name in ("one", "other"):
                own = self.register_model(torch.nn.Linear(3, 1), name=name)
                self.register_optimizer(torch.optim.SGD(own.parameters(), lr=0.01), name=name)

        def train_step(self, _epoch, _iteration, data_dict):
            self.update("one", SlowBackward.apply(self.model["one"](data_dict["x"])).mean())
            return {}, {"loss": self.model["other"](data_dict["x"]).square().mean()}

        def val_step(self, *_):
            return {}, {"loss": torch.zeros(())}

    trainer = TakingTurns(tmp_path, "nothing")
    trainer.run()
    assert trainer.shares()["backward"] > 0.6


def test_of_a_quick_epoch_nothing_is_advised(tmp_path):
    trainer = Sleepy(tmp_path, "nothing", max_epoch=3)
    trainer.run()
    assert len(trainer.lines()) == 3
    assert "went into" not in trainer.text()


@pytest.mark.parametrize(
    ("part", "settings", "advice"),
    [
        ("optimizer", {"fused_optimizer": False}, "set trainer.fused_optimizer to true"),
        ("optimizer", {"ema_decay": 0.99}, "trainer.ema_every"),
        ("checkpoints", {}, "save less often by trainer.save_every"),
    ],
)
def test_the_setting_that_helps_is_one_that_is_not_in_force(tmp_path, part, settings, advice):
    trainer = Sleepy(tmp_path, "nothing", **settings)
    said = epoch_time.bottleneck_hint(EpochShares(10.0, {part: 0.9, "other": 0.1}), trainer._context.settings)
    assert said.startswith("90% of the epoch's 10.0s went into ")
    assert advice in said


def test_only_steps_behind_a_log_line_are_measured_once_a_second_and_the_others_run_as_they_are(tmp_path, monkeypatch):
    class Looking(Sleepy):
        def after_train_step(self, _epoch, iteration, *_):
            if "_step" in vars(self._pass) and vars(self._pass)["_step"].__name__ == "call":
                measured.append(iteration)

    measured = []
    Looking(tmp_path / "quick", "nothing").run()
    assert measured == [2]
    measured.clear()
    monkeypatch.setattr(step_sampler, "_EVERY_S", 0.0)
    Looking(tmp_path, "nothing").run()
    assert measured == [2, 6, 11, 16]
    measured.clear()
    Looking(tmp_path / "window", "nothing", grad_acc_steps=3, log_steps=10).run()
    assert measured == [2, 3, 4, 11, 12, 13]


def test_a_part_inside_of_another_is_counted_once():
    watch = Stopwatch()
    with watch.part("outer"):
        time.sleep(NAP_S)
        with watch.part("inner"):
            time.sleep(3 * NAP_S)
    time.sleep(NAP_S)
    seconds = watch.take()
    assert set(seconds) == {"outer", "inner"}
    assert NAP_S <= seconds["outer"] < seconds["inner"]
    assert watch.take() == {}


def test_an_epoch_that_a_person_has_held_has_no_times():
    opened = []
    times = EpochTimes(torch.device("cpu"), lambda: len(opened))
    clock = StepClock(torch.device("cpu"))
    clock.count(0.1, 0.2)
    times.add(clock)
    opened.append("a prompt")
    assert times.take() is None
    times.add(clock)
    assert times.take() is not None
