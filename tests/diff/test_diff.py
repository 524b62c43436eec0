"""``vision3d-engine diff``: what it says of two runs, and with which exit code."""

import json
import re
import shutil
import sys

import pytest
import torch

from tests.toys import Rows, ToyEpochTrainer, ToyIterTrainer, settings
from vision3d_engine import build_dataloader
from vision3d_engine.commands import main


class DrawingTrainer(ToyEpochTrainer):
    """Its steps draw."""

    def train_step(self, epoch, iteration, data_dict):
        return super().train_step(epoch, iteration, data_dict | {"x": data_dict["x"] + 0.1 * torch.randn(3)})


class OtherRows(Rows):
    """Sample 5 is another one."""

    def __init__(self, count):
        super().__init__(count)
        self.y[5:6] += 1


def train(folder, kind=ToyEpochTrainer, rows=Rows, batch_size=2, lr=0.1, shuffle=False, seed=0, own=None, **trainer):
    """Train a toy on eight samples; return its folder."""
    cfg = settings(folder, **{"max_epoch": 3, "log_steps": 2, **trainer}) | (own or {})
    cfg["exp"]["seed"] = seed
    loaders = [
        build_dataloader(rows(count), batch_size, num_workers=0, shuffle=shuffle and count > 4) for count in (8, 4)
    ]
    kind(cfg, *loaders, lr=lr).run()
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run of 12 steps."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # as tests are, outside of any repository
        return train(folder / "plain")


@pytest.fixture
def diff(capsys):
    """Call the command; return its exit code and what it prints."""

    def call(*words):
        capsys.readouterr()
        try:
            main(["diff", *map(str, words)])
        except SystemExit as end:
            return end.code, capsys.readouterr().out
        return 0, capsys.readouterr().out

    return call


def test_a_copy_of_a_run_does_not_differ(plain, tmp_path, diff):
    shutil.copytree(plain, tmp_path / "copy")
    code, text = diff(plain, tmp_path / "copy")
    assert code == 0
    assert "settings, environment and data: no difference" in text
    assert text.endswith("numbers: no difference in 12 steps that both have (1 to 12)\n")


def test_another_seed_is_the_likeliest_cause_of_another_order(tmp_path, diff):
    runs = [train(tmp_path / str(seed), shuffle=True, seed=seed) for seed in (0, 1)]
    code, text = diff(*runs)
    assert code == 1
    assert "  exp.seed  0  1\n" in text
    assert "numbers: differ from step 1 on (epoch 1, iteration 1)\n" in text
    assert "batch   other samples: " in text
    assert "random  another seed: exp.seed is 0 and 1\n" in text
    assert "likeliest cause: another seed, of which initial weights, order" in text


def test_steps_that_draw_differ_by_the_seed_though_their_batch_is_the_same(tmp_path, diff):
    _, text = diff(*(train(tmp_path / str(seed), DrawingTrainer, seed=seed) for seed in (0, 1)))
    assert "batch   the same samples: 0, 1\n" in text
    assert "likeliest cause: another seed" in text


def test_another_rate_shows_in_the_step_after_the_first_update(plain, tmp_path, diff):
    code, text = diff(plain, train(tmp_path / "rate", lr=0.2, own={"optimizer": {"lr": 0.2}}))
    assert code == 1
    assert "  optimizer.lr  none  0.2\n" in text
    assert "numbers: differ from step 2 on (epoch 1, iteration 2); until then the same bits (1 compared)" in text
    assert "rate    lr differs at the log line of step 2: 0.1 and 0.2\n" in text
    assert "likeliest cause: the learning rate: lr is 0.1 and 0.2 at the log line of step 2 (optimizer.lr is" in text


def test_a_schedule_that_leaves_later_is_found_where_it_leaves(plain, tmp_path, diff):
    class Falling(ToyEpochTrainer):
        def scheduler_step(self):
            super().scheduler_step()
            if self.epoch == 2:
                self.optimizer.param_groups[0]["lr"] = 0.01

    _, text = diff(plain, train(tmp_path / "falling", Falling))
    assert "numbers: differ from step 10 on (epoch 3, iteration 2); until then the same bits (9 compared)" in text
    assert "likeliest cause: the learning rate: lr is 0.1 and 0.01 at the log line of step 10" in text


def test_another_batch_size_is_seen_in_the_samples(plain, tmp_path, diff):
    _, text = diff(plain, train(tmp_path / "four", batch_size=4))
    assert "batch   other samples: 0, 1 in A; 0, 1, 2, 3 in B\n" in text
    assert "likeliest cause: the batch holds other samples: training loader.batch_size is 2 and 4" in text


def test_a_sample_that_has_changed_is_among_those_that_are_named(plain, tmp_path, diff):
    class Rows(OtherRows):
        """Of the same name, as when a file has changed."""

    _, text = diff(plain, train(tmp_path / "changed", rows=Rows))
    assert "numbers: differ from step 3 on (epoch 1, iteration 3); until then the same bits (2 compared)" in text
    assert "batch   the same samples: 4, 5\n" in text
    assert "nothing that is recorded differs: the contents of a sample (4, 5 are read here for the first time)" in text


def test_another_class_of_the_data_set_is_named(plain, tmp_path, diff):
    _, text = diff(plain, train(tmp_path / "other", rows=OtherRows))
    assert "likeliest cause: other training data: training loader.dataset is Rows and OtherRows" in text


def test_another_precision_is_named_with_what_does_not_explain_it(plain, tmp_path, diff):
    class Cast(ToyEpochTrainer):
        def train_step(self, epoch, iteration, data_dict):
            output_dict, result_dict = super().train_step(epoch, iteration, data_dict)
            cast = self.model.weight.float() @ torch.ones(3, 1) * 1e-6
            return output_dict, {**result_dict, "loss": result_dict["loss"] + cast.sum()}

    single = train(tmp_path / "fp32", Cast)
    _, text = diff(single, train(tmp_path / "bf16", Cast, precision="bf16"))
    assert "likeliest cause: same batch, same rate; another setting: trainer.precision is fp32 and bf16" in text


def test_other_versions_are_named_when_nothing_else_differs(plain, tmp_path, diff):
    class Twin(ToyEpochTrainer):
        def train_step(self, epoch, iteration, data_dict):
            output_dict, result_dict = super().train_step(epoch, iteration, data_dict)
            return output_dict, {**result_dict, "loss": result_dict["loss"] * (1 + 2**-52)}

    twin = train(tmp_path / "twin", Twin)
    record = json.loads((plain / "env.json").read_text())
    record["packages"]["torch"] = "1.0"
    (twin / "env.json").write_text(json.dumps(record))
    _, text = diff(plain, twin)
    assert "other kernels, or sums in another order: packages.torch is " in text
    assert " of fp64)\n" in text


@pytest.mark.parametrize("kind", [ToyEpochTrainer, ToyIterTrainer])
def test_a_run_that_was_resumed_in_mid_interval_equals_one_that_was_not(tmp_path, diff, kind):
    class StoppedError(Exception):
        pass

    class Stopping(kind):
        def after_train_step(self, epoch, iteration, *_):
            if (epoch, iteration) == (2, 4):
                raise StoppedError

    often = {"save_every": "1 iterations", "log_steps": 3, "shuffle": True}
    with pytest.raises(StoppedError):
        train(tmp_path / "resumed", Stopping, **often)
    straight = train(tmp_path / "straight", kind, **often)
    code, text = diff(straight, tmp_path / "resumed")  # as it was left
    assert code == 0, text
    assert "steps 1 to 7, stopped by StoppedError" in text, text
    train(tmp_path / "resumed", kind, resume=True, **often)
    code, text = diff(straight, tmp_path / "resumed")
    assert code == 0, text
    assert "no difference in 12 steps that both have (1 to 12)" in text
    assert "trainer.resume" not in text
    assert "trainer.resume" in diff(straight, tmp_path / "resumed", "--all")[1]


def test_of_runs_of_other_lengths_the_common_steps_are_compared(plain, tmp_path, diff):
    code, text = diff(plain, train(tmp_path / "short", max_epoch=2))
    assert code == 0
    assert "  trainer.max_epoch  3  2\n" in text
    assert "no difference in 8 steps that both have (1 to 8)" in text


def test_validation_data_that_differ_are_a_difference(plain, tmp_path, diff):
    class Validating(ToyEpochTrainer):
        def val_step(self, epoch, iteration, data_dict):
            output_dict, result_dict = super().val_step(epoch, iteration, data_dict)
            return output_dict, {"mae": result_dict["mae"] * 2, "further": result_dict["mae"]}

    code, text = diff(plain, train(tmp_path / "val", Validating))
    assert code == 1
    assert "no difference in 12 steps that both have (1 to 12), but in validations\n" in text
    assert "  val/mae         4     " in text
    assert "only B has val/further" in text
    assert "likeliest cause: all training steps are the same" in text


@pytest.mark.parametrize("name", ["config.yaml", "env.json", "metrics.jsonl"])
@pytest.mark.parametrize("damage", ["gone", "torn"])
def test_a_file_that_cannot_be_read_costs_its_own_part_alone(plain, tmp_path, diff, name, damage):
    path = shutil.copytree(plain, tmp_path / "copy") / name
    path.unlink() if damage == "gone" else path.write_text("{torn")
    code, text = diff(plain, tmp_path / "copy")
    assert code == 0
    assert f"not compared: {name} (missing or unreadable in B)\n" in text
    assert "no difference in 12 steps" in text
    assert ("settings, environment and data: no difference" in text) == (name == "metrics.jsonl")


def test_without_single_steps_log_lines_are_compared(plain, tmp_path, diff):
    copies = [shutil.copytree(plain, tmp_path / name) for name in "ab"]
    (copies[0] / "logs" / "steps.jsonl").unlink()
    code, text = diff(*copies)
    assert code == 0
    assert "no difference in 6 log lines (means, since single steps are not recorded) that both have" in text
    lines = (copies[1] / "metrics.jsonl").read_text()
    (copies[1] / "metrics.jsonl").write_text(lines.replace('"loss": ', '"loss": 1', 1))
    assert "numbers: differ from the log line of step 2 on" in diff(*copies)[1]
    (copies[1] / "metrics.jsonl").unlink()
    code, text = diff(*copies)
    assert code == 1
    assert "numbers: nothing to compare, since the runs have recorded no step in common" in text


def test_what_is_not_recorded_explains_nothing(tmp_path, diff):
    runs = [train(tmp_path / str(seed), shuffle=True, seed=seed) for seed in (0, 1)]
    (runs[0] / "config.yaml").unlink()
    (runs[1] / "env.json").unlink()
    code, text = diff(*runs)
    assert code == 1
    assert "batch   samples are not known (A: not recorded, B: not recorded)\n" in text
    assert "random  not known without config.yaml\n" in text
    assert "likeliest cause: nothing that is recorded differs" in text


def test_a_run_of_whose_first_steps_nothing_is_left_may_have_differed_there(plain, tmp_path, diff):
    other = train(tmp_path / "rate", lr=0.2)
    lines = (other / "logs" / "steps.jsonl").read_text().splitlines(keepends=True)
    (other / "logs" / "steps.jsonl").write_text("".join(lines[2:]) + lines[2][:20])
    _, text = diff(plain, other)
    assert "numbers: differ from step 5 on (epoch 2, iteration 1); of the steps before nothing is known\n" in text
    assert "likeliest cause: the learning rate" in text


def test_settings_of_the_script_may_have_any_name_and_value(tmp_path, diff):
    own = [{"seed": 0, "none": float("nan"), "on": True}, {"seed": 1, "none": float("nan"), "on": 1}]
    runs = [train(tmp_path / str(number), own=each) for number, each in enumerate(own)]
    code, text = diff(*runs)
    assert code == 0
    assert "  seed    0     1\n  on      True  1\n\n" in text


def test_many_settings_fit_a_screen_unless_all_are_asked_for(plain, tmp_path, diff):
    own = {"model": {"stages": [{"width": number} for number in range(12)]}}
    wide = train(tmp_path / "wide", own=own)
    assert "  model.stages.0.width  none  0\n" in diff(plain, wide)[1]
    assert "  and 4 more (--all)\n" in diff(plain, wide)[1]
    assert "  model.stages.11.width" in diff(plain, wide, "--all")[1]


def test_runs_that_share_no_name_have_nothing_to_compare(plain, tmp_path, diff):
    copy = shutil.copytree(plain, tmp_path / "renamed")
    for path in (copy / "logs" / "steps.jsonl", copy / "metrics.jsonl"):
        path.write_text(re.sub('"(loss|mae|accuracy)"', r'"other_\1"', path.read_text()))
    code, text = diff(plain, copy)
    assert code == 1
    assert "nothing to compare, since the runs have recorded no number of the same name in common\n" in text
    assert "only B has other_loss" in text


def test_other_arguments_of_the_script_are_named_as_the_cause(tmp_path, diff, monkeypatch):
    for width in ("8", "16"):
        monkeypatch.setattr(
            sys, "argv", ["train.py", "--width", width, "--out", str(tmp_path / width), "--log_steps=2"]
        )
        train(tmp_path / width, lr=float(width) / 100)
    code, text = diff(tmp_path / "8", tmp_path / "16")
    assert code == 1
    assert re.search(r"^command +A +B\n  --width +8 +16\n  --out ", text, re.MULTILINE)
    assert "--log_steps" not in text
    for name in ("8", "16"):
        hide_rates(tmp_path / name)
    _, text = diff(tmp_path / "8", tmp_path / "16")
    assert text.endswith("another argument of the script: --width is 8 and 16\n"), text


def hide_rates(folder):
    """Let it look as if runs with other rates differed by something else."""
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text().replace('"lr"', '"rate"'))


def test_a_folder_of_a_test_alone_is_refused_with_the_command_that_compares_tests(plain, tmp_path, diff):
    (tmp_path / "logs").mkdir()
    (tmp_path / "results.json").write_text("{}")
    code, _ = diff(plain, tmp_path)
    assert "is the folder of a test" in code
    assert "vision3d-engine table" in code


def test_a_script_that_has_changed_is_named(plain, tmp_path, diff):
    runs = [shutil.copytree(plain, tmp_path / "a"), train(tmp_path / "b", lr=0.2)]
    for folder, checksum in zip(runs, ("aa", "bb"), strict=True):
        record = json.loads((folder / "env.json").read_text())
        assert len(record["script"]["toys.py"]) == 16
        (folder / "env.json").write_text(json.dumps(record | {"script": {"toys.py": checksum}}))
        hide_rates(folder)
    assert "another script: script.toys.py is aa and bb\n" in diff(*runs)[1]


def test_resume_in_an_empty_folder_is_no_resume_and_no_cause(plain, tmp_path, diff):
    train(tmp_path / "anew", lr=0.2, resume=True)
    train(tmp_path / "half", max_updates=6, lr=0.2)
    train(tmp_path / "half", resume=True, lr=0.2)
    for name in ("anew", "half"):
        hide_rates(tmp_path / name)
    assert "was resumed" not in diff(plain, tmp_path / "anew")[1]
    assert "B was resumed" in diff(plain, tmp_path / "half")[1]


@pytest.mark.parametrize("name", ["nowhere", "file", "empty"])
def test_what_is_no_run_is_refused_with_what_to_do(plain, tmp_path, diff, name):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    code, _ = diff(plain, tmp_path / name)
    assert str(tmp_path / name) in code
    assert "exp.output_dir of a run" in code
