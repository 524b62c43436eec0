"""The flags of old scripts, and the command lines of programs that merely run us."""

import sys
from pathlib import Path

import pytest

from tests.toys import ToyEpochTrainer, ToySingleTester, save_weights, settings
from vision3d_engine import CheckpointError, ConfigError, FolderInUseError, get_parser, ignore_command_line, load_config


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


# ------------------------------------------------------------------------------------------- switches and words


@pytest.mark.parametrize("name", ["resume", "overwrite", "allow_changed_data", "debug"])
@pytest.mark.parametrize(("words", "expected"), [([], True), (["False"], False), (["True"], True)])
def test_every_switch_takes_true_and_false(name, words, expected, argv, tmp_path):
    for given in ([f"--{name}", *words], [f"--{name}={word}" for word in words] or [f"--{name}"]):
        argv(*given)
        assert getattr(ToyEpochTrainer(settings(tmp_path)).args, name) is expected
    argv(f"--no-{name}")
    assert getattr(ToyEpochTrainer(settings(tmp_path, **{name: True})).args, name) is False


def test_a_run_that_shall_not_overwrite_is_refused(argv, tmp_path):
    ToyEpochTrainer(settings(tmp_path)).run()
    argv("--overwrite", "False", "--resume", "False")
    with pytest.raises(FolderInUseError, match="holds checkpoints of an earlier run"):
        ToyEpochTrainer(settings(tmp_path)).run()


@pytest.mark.parametrize("is_joined", [True, False])
@pytest.mark.parametrize("path", ["old", "old/checkpoints", "old/checkpoints/checkpoint.pth", "~/checkpoints"])
def test_resume_takes_the_path_of_a_checkpoint_or_of_a_run(path, is_joined, argv, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "old"))
    ToyEpochTrainer(settings(tmp_path / "old")).run()
    argv(*([f"--resume={path}"] if is_joined else ["--resume", path]))
    toy = ToyEpochTrainer(settings(tmp_path / "new", max_epoch=2))
    assert toy.args.resume is True
    toy.run()
    assert (toy.epoch, toy.total_steps) == (2, 6)
    assert not (tmp_path / "new" / "checkpoints" / "epoch-1.pth").exists()


@pytest.mark.parametrize("path", ["run", "run/checkpoints"])
def test_resume_with_the_folder_of_the_run_itself_is_a_plain_resume(path, argv, tmp_path):
    argv("--resume", path)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    ToyEpochTrainer(settings("run")).run()
    (tmp_path / "run" / "checkpoints" / "checkpoint.pth").write_bytes(b"")
    toy = ToyEpochTrainer(settings("run", max_epoch=2))
    toy.run()
    assert toy.total_steps == 6


def test_a_folder_without_checkpoints_is_nothing_to_resume(argv, tmp_path):
    (tmp_path / "data").mkdir()
    argv("--resume", "data")
    with pytest.raises(CheckpointError, match=r"'.*data' is no run folder: .*checkpoint\.pth"):
        ToyEpochTrainer(settings(tmp_path / "run")).run()


@pytest.mark.parametrize("flag", ["--resume", "--overwrite", "--debug"])
def test_another_word_behind_a_switch_is_an_error_before_anything_is_touched(flag, argv, tmp_path):
    ToyEpochTrainer(settings(tmp_path)).run()
    before = (tmp_path / "checkpoints" / "epoch-1.pth").stat().st_mtime_ns
    argv(flag, "flase")
    with pytest.raises(ConfigError, match=rf"nobody reads 'flase' behind {flag}, which takes True.* before it"):
        ToyEpochTrainer(settings(tmp_path)).run()
    assert (tmp_path / "checkpoints" / "epoch-1.pth").stat().st_mtime_ns == before


def test_two_flags_that_name_a_checkpoint_are_refused(argv, tmp_path):
    argv("--resume=a.pth", "--checkpoint", "b.pth")
    with pytest.raises(ConfigError, match=r"--resume names 'a\.pth' and --checkpoint 'b\.pth'"):
        ToyEpochTrainer(settings(tmp_path))


def test_positionals_and_flags_of_the_script_are_left_alone(argv, tmp_path):
    (tmp_path / "scene").mkdir()
    argv("--overwrite", "scene", "--resume", "False", "7", "--debug", "--name", "x")
    get_parser().add_argument("data")
    get_parser().add_argument("fold", type=int)
    get_parser().add_argument("--name")
    toy = ToyEpochTrainer(settings(tmp_path / "run"))
    assert (toy.args.data, toy.args.fold, toy.args.name) == ("scene", 7, "x")
    assert (toy.args.overwrite, toy.args.resume, toy.args.debug) == (True, False, True)
    toy.run()


def test_a_flag_that_the_script_takes_over_after_parsing_belongs_to_the_script(argv, tmp_path):
    argv("--checkpoint", "not-for-the-engine.pth")
    get_parser().parse_known_args()
    get_parser().add_argument("--checkpoint")
    toy = ToyEpochTrainer(settings(tmp_path))
    assert toy.args.checkpoint == "not-for-the-engine.pth"
    toy.run()


def test_a_script_that_parses_before_its_trainer_is_made_has_the_flags_of_the_engine_and_its_own(argv, tmp_path):
    argv("--resume", "--area", "5", "--log_steps", "3")
    get_parser().add_argument("--area", type=int)
    args = get_parser().parse_args()
    assert (args.area, args.resume, args.log_steps) == (5, True, 3)
    assert ToyEpochTrainer(settings(tmp_path)).log_steps == 3


def test_positionals_of_the_shared_parser_get_the_words_behind_the_value_of_an_override(argv, tmp_path):
    argv("--trainer.max_epoch", "1", "scene", "--exp.output_dir", str(tmp_path))
    get_parser().add_argument("data")
    toy = ToyEpochTrainer(load_config(None))
    assert (toy.args.data, toy.max_epoch) == ("scene", 1)


def test_a_longer_flag_of_a_parser_of_the_scripts_own_is_not_taken_for_ours(argv, tmp_path):
    argv("--devices", "2", "--log_steps_val=3", "--checkpoints", "x")
    toy = ToyEpochTrainer(settings(tmp_path, device="cpu"))
    log_file = toy.log_file
    toy.run()
    assert (toy.args.device, toy.args.checkpoint, toy.log_steps) == ("cpu", None, 100)
    assert "unknown argument --devices is ignored" in Path(log_file).read_text()


@pytest.mark.parametrize("word", ["--trainer.max_epoch", "--trainer.max-epoch", "--trainer.max_epochs", "--exp.seed"])
@pytest.mark.parametrize("way", ["{} 3", "{}=3"])
def test_an_override_that_a_script_does_not_read_is_refused_with_what_reads_it(word, way, argv, tmp_path):
    argv(*way.format(word).split())
    with pytest.raises(ConfigError, match=f"^{word}.* sets nothing, since this script .* expected is .* load_config()"):
        ToyEpochTrainer(settings(tmp_path)).run()


def test_an_override_of_a_section_that_is_not_the_engines_is_a_warning(argv, tmp_path):
    argv("--network.width", "3")
    toy = ToyEpochTrainer(settings(tmp_path))
    toy.run()
    assert "unknown argument --network.width is ignored" in Path(toy.log_file).read_text()


def test_a_script_with_a_parser_of_its_own_keeps_its_command_line(argv, tmp_path):
    argv(
        "scene",
        "--device",
        "2,3",
        "--resum",
        "--overwrite",
        "scene",
        "--trainer.max_epoch",
        "1",
        "2",
        "trainer.log_steps=2",
    )
    ignore_command_line()
    cfg = load_config(None)
    assert cfg == {}
    toy = ToyEpochTrainer(settings(tmp_path))
    log_file = toy.log_file
    toy.run()
    assert (toy.args.device, toy.args.overwrite, toy.log_steps) == (None, False, 100)
    assert "unknown argument" not in Path(log_file).read_text()
