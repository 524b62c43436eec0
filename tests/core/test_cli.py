"""The flags of old scripts, and the command lines of programs that merely run us."""

import sys
from pathlib import Path

import pytest

from tests.toys import ToyEpochTrainer, ToySingleTester, save_weights, settings
from vision3d_engine import ConfigError, get_parser, load_config


def test_the_flags_win_over_the_config(argv, tmp_path):
    argv("--log_steps", "3", "--save_latest_n_models", "2", "--device", "cpu", "--debug")
    toy = ToyEpochTrainer(settings(tmp_path, log_steps=100))
    assert (toy.log_steps, toy.args.save_latest_n_models, toy.args.debug) == (3, 2, True)


def test_args_show_the_settings_in_force_when_no_flag_is_given(argv, tmp_path):
    argv()
    toy = ToyEpochTrainer(settings(tmp_path, log_steps=17))
    assert (toy.args.log_steps, toy.args.resume, toy.args.cudnn_deterministic) == (17, False, True)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--cudnn_deterministic"], True),
        (["--cudnn_deterministic", "True"], True),
        (["--cudnn_deterministic", "False"], False),
        (["--cudnn_deterministic=0"], False),
        (["--no-cudnn_deterministic"], False),
        ([], True),
    ],
)
def test_the_deterministic_switch_means_what_it_says(words, expected, argv, tmp_path):
    argv(*words)
    assert ToyEpochTrainer(settings(tmp_path)).args.cudnn_deterministic is expected


@pytest.mark.parametrize("name", ["--local_rank", "--local-rank"])
def test_the_local_rank_of_old_launchers_is_tolerated(name, argv, tmp_path):
    argv(f"{name}=0")
    ToyEpochTrainer(settings(tmp_path)).run()


def test_flags_that_a_script_adds_before_and_after_reach_args(argv, tmp_path):
    argv("--area", "5", "--late", "x", "--resume")
    get_parser().add_argument("--area", type=int)
    toy = ToyEpochTrainer(settings(tmp_path))
    assert (toy.args.area, toy.args.resume) == (5, True)
    get_parser().add_argument("--late")
    get_parser().add_argument("--other", default="default")
    assert (toy.args.area, toy.args.late, toy.args.other) == (5, "x", "default")


def test_a_flag_of_the_script_with_the_name_of_ours_belongs_to_the_script(argv, tmp_path):
    argv("--checkpoint", "not-for-the-engine.pth")
    get_parser().add_argument("--checkpoint")
    toy = ToyEpochTrainer(settings(tmp_path))
    assert toy.args.checkpoint == "not-for-the-engine.pth"
    toy.run()


def test_a_mistyped_flag_is_an_error_and_a_foreign_one_a_warning(argv, tmp_path):
    argv("--resum")
    with pytest.raises(ConfigError, match="unknown argument --resum; did you mean '--resume'"):
        ToyEpochTrainer(settings(tmp_path)).run()
    argv("--wandb_project", "x")
    toy = ToyEpochTrainer(settings(tmp_path))
    log_file = toy.log_file
    toy.run()
    assert "unknown argument --wandb_project is ignored" in Path(log_file).read_text()


@pytest.mark.parametrize(
    "program",
    [
        "/venv/bin/pytest",
        "/venv/site-packages/pytest/__main__.py",
        "/x/ipykernel_launcher.py",
        "",
        "/ray/default_worker.py",
    ],
)
def test_the_command_line_of_another_program_is_not_touched(program, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", [program, "--resume", "-f", "kernel.json"])
    toy = ToyEpochTrainer(settings(tmp_path))
    assert toy.args.resume is False
    toy.run()


def test_overrides_of_load_config_are_not_unknown_flags(argv, tmp_path):
    argv("--trainer.max_epoch", "1", "--exp.output_dir", str(tmp_path), "--log_steps=4")
    cfg = load_config(None)
    toy = ToyEpochTrainer(cfg)
    toy.run()
    assert toy.log_steps == 4


def test_help_shows_flags_and_settings(argv, tmp_path, capsys):
    argv("--help", "--trainer.max_epoch", "1")
    cfg = load_config(None)
    with pytest.raises(SystemExit):
        ToyEpochTrainer(cfg)
    text = capsys.readouterr().out
    assert "--resume" in text
    assert "--trainer.grad_acc_steps" in text
    assert "Batches whose gradients make one update" in text


def test_a_second_trainer_and_a_tester_in_one_process_work(argv, tmp_path):
    argv("--log_steps", "2")
    ToyEpochTrainer(settings(tmp_path)).run()
    ToyEpochTrainer(settings(tmp_path, overwrite=True)).run()
    save_weights(tmp_path)
    ToySingleTester(settings(tmp_path)).run()


def test_test_epoch_and_checkpoint_name_what_to_test(argv, tmp_path):
    ToyEpochTrainer(settings(tmp_path, max_epoch=2)).run()
    for words, name in ((("--test_epoch", "1"), "epoch-1.pth"), (("--checkpoint", "epoch-2.pth"), "epoch-2.pth")):
        argv(*words)
        toy = ToySingleTester(settings(tmp_path), checkpoint=None)
        log_file = toy.log_file
        toy.run()
        assert name in Path(log_file).read_text()
