"""``trainer.profile``: the steps of the window are profiled, all others know nothing of it, and no bit changes."""

import gzip
import json
import re

import pytest
import torch
from torch import nn

from vision3d_engine import EpochBasedTrainer
from vision3d_engine.core.errors import ConfigError

PARTS = {"data", "forward", "backward", "optimizer", "hooks"}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.head = nn.Linear(4 * 16, 5)

    def forward(self, x):
        return self.head(self.conv(x).flatten(1))


class Trainer(EpochBasedTrainer):
    def __init__(self, folder, **settings):
        defaults = {"max_epoch": 1, "log_steps": 3, "val_every": "never"}
        super().__init__({"exp": {"output_dir": str(folder)}, "trainer": {**defaults, **settings}})
        generator = torch.Generator().manual_seed(1)
        self.register_loader([{"x": torch.randn(3, 2, 6, 6, generator=generator)} for _ in range(10)], None)
        torch.manual_seed(0)
        self.register_model(Net())
        self.register_optimizer(torch.optim.Adam(self.model.parameters()))

    def train_step(self, _epoch, _iteration, data_dict):
        return {}, {"loss": self.model(data_dict["x"]).square().mean()}

    def after_train_step(self, *_):
        pass

    @property
    def text(self):
        return "".join(path.read_text() for path in sorted((self._session.folders.logs).glob("train-*.log")))


class TakingTurns(Trainer):
    def __init__(self, folder, **settings):
        super().__init__(folder, **settings)
        self.model, self.optimizer = None, None
        torch.manual_seed(0)
        for name in ("one", "other"):
            model = self.register_model(Net(), name=name)
            self.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.01), name=name)

    def train_step(self, _epoch, _iteration, data_dict):
        self.update("one", self.model["one"](data_dict["x"]).square().mean())
        return {}, {"loss": self.model["other"](data_dict["x"]).square().mean()}


def trace_of(folder, step, rank=0):
    with gzip.open(folder / "debug" / f"profile-{step}-rank{rank}.json.gz") as file:
        return [event["name"] for event in json.load(file)["traceEvents"] if event.get("cat") == "user_annotation"]


def run(trainer):
    trainer.run()
    return [each.detach().clone() for each in trainer.model.parameters()]


def test_the_steps_of_the_window_are_in_the_trace_with_the_parts_of_each(tmp_path):
    trainer = Trainer(tmp_path, profile="4:7")
    trainer.run()
    names = trace_of(tmp_path, 4)
    assert [name for name in names if name.startswith("step ")] == ["step 4", "step 5", "step 6"]
    assert set(names) >= PARTS | {"module conv (Conv2d)", "module head (Linear)"}
    assert names.count("forward") == names.count("backward") == names.count("optimizer") / 2 == 3


def test_the_log_tells_the_costs_of_operations_and_modules_and_the_flops_counted_by_hand(tmp_path):
    trainer = Trainer(tmp_path, profile="4:7")
    trainer.run()
    conv = 2 * 3 * 4 * 16 * (2 * 9)  # samples, channels out, places, what each is a sum of
    head = 2 * 3 * 64 * 5
    own, all_of_it = {"conv": 2 * conv, "head": 3 * head}, 2 * conv + 3 * head  # no gradient of the data
    assert re.search(r"profile of steps 4 to 6: .* ms a step; trace .*profile-4-rank0.json.gz", trainer.text)
    assert "aten::addmm" in trainer.text
    for name, flops in own.items():
        assert re.search(rf"{name} \(\w+\) +\d.* {flops / 1e3:.3g} k\n", trainer.text), name
    assert f"FLOPs: {all_of_it / 1e3:.3g} k a step (of step 3)" in trainer.text


@pytest.mark.parametrize("settings", [{}, {"grad_acc_steps": 2}, {"debug": True}, {"precision": "bf16"}])
@pytest.mark.parametrize("kind", [Trainer, TakingTurns])
def test_a_profiled_run_has_the_same_bits(tmp_path, kind, settings):
    plain = run(kind(tmp_path / "plain", **settings))
    profiled = run(kind(tmp_path / "profiled", profile="4:7", **settings))
    assert all(map(torch.equal, plain, profiled))
    assert set(trace_of(tmp_path / "profiled", 4)) >= PARTS


def test_a_window_may_reach_into_the_next_epoch(tmp_path):
    Trainer(tmp_path, profile="9:13", max_epoch=2).run()
    steps = [name for name in trace_of(tmp_path, 9) if name.startswith("step ")]
    assert steps == ["step 9", "step 10", "step 11", "step 12"]


def test_the_first_step_of_a_run_warms_the_profiler_up(tmp_path):
    trainer = Trainer(tmp_path, profile="1:4")
    trainer.run()
    assert [name for name in trace_of(tmp_path, 2) if name.startswith("step ")] == ["step 2", "step 3"]
    assert "of which the steps 2 to 3 were profiled: this run made the steps 1 to 10" in trainer.text


def test_a_window_that_reaches_beyond_the_end_is_said_with_what_was_profiled(tmp_path):
    trainer = Trainer(tmp_path, profile="9:20")
    trainer.run()
    assert "'9:20', of which the steps 9 to 10 were profiled" in trainer.text
    assert trace_of(tmp_path, 9)


def test_a_window_beyond_the_end_is_said(tmp_path):
    trainer = Trainer(tmp_path, profile="90:95")
    trainer.run()
    assert "'90:95', of which nothing was profiled: this run made the steps 1 to 10" in trainer.text
    assert not (tmp_path / "debug").exists()


def test_a_resumed_run_behind_the_window_says_so(tmp_path):
    Trainer(tmp_path).run()
    trainer = Trainer(tmp_path, profile="4:7", max_epoch=2, resume=True)
    trainer.run()
    assert "of which nothing was profiled: this run made the steps 11 to 20" in trainer.text


def test_steps_behind_the_window_run_as_they_are(tmp_path):
    class Looking(Trainer):
        def after_train_step(self, *_):
            steps[self.total_steps] = self._pass.runner.iterate

    steps = {}
    Looking(tmp_path, profile="2:5", log_steps=100).run()
    assert steps[4] != steps[6]
    assert steps[6] == steps[10]
    assert steps[10].__name__ == "_iterate"


@pytest.mark.parametrize("window", ["10", "5:5", "7:3", "0:4", "a:b", "3:"])
def test_a_bad_window_is_refused_at_once(tmp_path, window):
    with pytest.raises(ConfigError, match=r"profile.*FIRST:END, such as '10:20'"):
        Trainer(tmp_path, profile=window)


def test_a_step_that_raises_leaves_the_trace_of_those_before_it(tmp_path):
    class Failing(Trainer):
        def after_train_step(self, *_):
            if self.total_steps == 6:
                raise ArithmeticError

    with pytest.raises(ArithmeticError):
        Failing(tmp_path, profile="4:9").run()
    assert "step 5" in trace_of(tmp_path, 4)


def test_of_a_compiled_model_modules_are_not_told_and_bits_stay(tmp_path):
    def compiled(folder, **settings):
        trainer = Trainer(folder, **settings)
        trainer.model.compile(backend="aot_eager")
        return trainer

    plain, trainer = run(compiled(tmp_path / "plain")), compiled(tmp_path / "profiled", profile="4:7")
    assert all(map(torch.equal, plain, run(trainer)))
    assert "modules and FLOPs are not told of a compiled model" in trainer.text
    assert set(trace_of(tmp_path / "profiled", 4)) >= PARTS
