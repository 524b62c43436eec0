"""Steps in 16 bits, and limits on gradients, against loops written by hand; equal to the bit on one process."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.toys import ToyEpochTrainer, linear_model, rows_loader, settings
from vision3d_engine import ConfigError, RegistrationError

STEPS = 6


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, x):
        return self.layers(x.float())


class Trainer(ToyEpochTrainer):
    """Trains a network in float32; one batch of an epoch may have a loss whose gradients overflow."""

    def __init__(self, cfg, kind=torch.optim.AdamW, overflow_at=None):
        super().__init__(cfg, rows_loader(2 * STEPS))
        self.model = self.optimizer = self.scheduler = None
        model = self.register_model(Net())
        self.register_optimizer(kind(model.parameters(), lr=0.01))
        self.overflow_at, self.types = overflow_at, set()

    def train_step(self, epoch, iteration, data_dict):
        output = self.model(data_dict["x"])
        self.types.add(output.dtype)
        return {}, {"loss": loss_of(output, data_dict, iteration == self.overflow_at)}

    def val_step(self, epoch, iteration, data_dict):
        output = self.model(data_dict["x"])
        self.types.add(output.dtype)
        return {}, {"loss": loss_of(output, data_dict)}


def loss_of(output, data_dict, overflows=False):
    loss = (output.float()[:, 0] - data_dict["y"].float()).square().mean()
    return loss * 1e36 if overflows else loss


def by_hand(dtype=None, kind=torch.optim.AdamW, window=1, clip=None, overflow_at=None, epochs=1):
    """Return model, losses, norms and numbers of skipped updates of a plain loop with torch's own parts."""
    model, losses, norms, skipped = Net(), [], [], [0]
    optimizer = kind(model.parameters(), lr=0.01, fused=True)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype is torch.float16)
    batches = list(rows_loader(2 * STEPS))
    for _ in range(epochs):
        for number, batch in enumerate(batches, start=1):
            with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
                loss = loss_of(model(batch["x"]), batch, number == overflow_at)
            losses.append(loss.item())
            scaler.scale(loss).backward()
            if number % window and number < len(batches):
                continue
            size = number % window or window
            for parameter in model.parameters() if size > 1 else ():
                parameter.grad /= size
            scaler.unscale_(optimizer)
            if clip is not None:
                norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), clip)))
            scaler.step(optimizer)
            before = scaler.get_scale()
            scaler.update()
            skipped.append(skipped[-1] + (scaler.get_scale() < before))
            optimizer.zero_grad()
    return model, losses, norms, skipped[1:]


def assert_same_bits(model, expected):
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def rows_of(folder, phase="train"):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line | line["values"] for line in lines if line["phase"] == phase]


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_a_run_in_any_precision_equals_torchs_own_parts_by_hand(name, clip, window, tmp_path):
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    options = {"precision": name, "clip_grad_norm": clip, "grad_acc_steps": window}
    trainer = Trainer(settings(tmp_path, **options, log_steps=1, max_epoch=2))
    trainer.run()
    model, losses, norms, _ = by_hand(dtype, window=window, clip=clip, epochs=2)
    assert_same_bits(trainer.model, model)
    assert trainer.types == {dtype or torch.float32}  # in validation too
    rows = rows_of(tmp_path)
    assert [row["loss"] for row in rows] == losses  # not those that were scaled
    if clip is not None:
        logged = [row["grad_norm"] for row in rows if row.get("grad_norm") is not None]
        assert logged == [norm for norm in norms if math.isfinite(norm)]


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_an_update_that_overflows_is_skipped_and_counted(kind, tmp_path):
    trainer = Trainer(settings(tmp_path, precision="fp16", log_steps=1, clip_grad_norm=1.0), kind, overflow_at=5)
    trainer.run()
    model, losses, _, skipped = by_hand(torch.float16, kind, clip=1.0, overflow_at=5)
    assert skipped[4] - skipped[3] == 1
    assert_same_bits(trainer.model, model)
    rows = rows_of(tmp_path)
    assert [row["skipped_updates"] for row in rows] == skipped
    assert [row["loss"] for row in rows] == losses
    assert [row["updates"] for row in rows] == [1, 2, 3, 4, 5, 6]  # the schedule follows attempts


def test_a_resume_goes_on_with_the_scale_and_the_count(tmp_path):
    class Broken(Trainer):
        def before_train_step(self, epoch, iteration, data_dict):
            if (epoch, iteration) == (1, 5):
                raise KeyboardInterrupt

    options = {"precision": "fp16", "log_steps": 1, "max_epoch": 2, "save_every": "1 iteration"}
    with pytest.raises(KeyboardInterrupt):
        Broken(settings(tmp_path, **options), overflow_at=3).run()
    trainer = Trainer(settings(tmp_path, **options, resume=True), overflow_at=3)
    trainer.run()
    model, _, _, skipped = by_hand(torch.float16, overflow_at=3, epochs=2)
    assert_same_bits(trainer.model, model)
    assert rows_of(tmp_path)[-1]["skipped_updates"] == skipped[-1] > 2


def test_an_own_step_in_fp16_must_let_the_engine_skip_it(tmp_path):
    class Own(Trainer):
        def optimizer_step(self):
            self.optimizer.step()
            self.optimizer.zero_grad()

    Own(settings(tmp_path / "bf16", precision="bf16")).run()
    with pytest.raises(RegistrationError, match=r"call super\(\)\.optimizer_step\(\) in it, or .*bf16"):
        Own(settings(tmp_path / "fp16", precision="fp16")).run()


def test_an_optimizer_without_fused_kernels_says_that_fp16_waits(tmp_path):
    trainer = Trainer(settings(tmp_path, precision="fp16"), torch.optim.Adamax)
    log_file = trainer.log_file
    trainer.run()
    assert "Adamax has no fused kernels here: fp16 waits for it once an update" in Path(log_file).read_text()


def test_two_settings_that_would_both_cast_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"precision is 'bf16' and fsdp_param_dtype is 'bf16': both would cast"):
        Trainer(settings(tmp_path, precision="bf16", fsdp_param_dtype="bf16"))


@pytest.mark.parametrize("name", ["clip_grad_norm", "clip_grad_value"])
def test_a_limit_that_is_none_is_refused(name, tmp_path):
    with pytest.raises(ConfigError, match=name):
        Trainer(settings(tmp_path, **{name: 0}))


def test_values_of_gradients_are_limited_after_the_norm(tmp_path):
    Trainer(settings(tmp_path, clip_grad_norm=0.5, clip_grad_value=0.01)).run()
    seen = []

    class Looking(Trainer):
        def optimizer_step(self):
            seen.append(max(float(parameter.grad.abs().max()) for parameter in self.model.parameters()))
            super().optimizer_step()

    Looking(settings(tmp_path / "looking", clip_grad_value=0.01)).run()
    assert max(seen) == pytest.approx(0.01)


def test_a_hook_sees_the_gradients_before_they_are_clipped_in_the_unit_of_the_loss(tmp_path):
    norms = []

    class Looking(Trainer):
        def after_backward(self, *_):
            norms.append(float(nn.utils.get_total_norm([each.grad for each in self.model.parameters()])))

    Looking(settings(tmp_path, precision="fp16", clip_grad_norm=0.01, log_steps=1)).run()
    logged = [row["grad_norm"] for row in rows_of(tmp_path) if row.get("grad_norm") is not None]
    assert logged == [norm for norm in norms if math.isfinite(norm)]


def test_the_backward_pass_can_be_overridden(tmp_path):
    class Twice(Trainer):
        def backward(self, loss):
            (loss * 2).backward(create_graph=False)

    class Doubled(Trainer):
        def train_step(self, epoch, iteration, data_dict):
            output_dict, result_dict = super().train_step(epoch, iteration, data_dict)
            return output_dict, {"loss": result_dict["loss"] * 2}

    found, expected = (
        kind(settings(tmp_path / kind.__name__, clip_grad_norm=0.3), torch.optim.SGD) for kind in (Twice, Doubled)
    )
    found.run()
    expected.run()
    assert_same_bits(found.model, expected.model)


def test_float64_stays_float64_in_full_precision():
    assert linear_model().weight.dtype == torch.float64
