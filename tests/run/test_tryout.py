"""``trainer.fast_dev_run`` tries all that a run does in a scratch folder, and leaves the run folder as it was."""

import re
import tempfile
from pathlib import Path

import pytest
import torch

from tests.toys import (
    ToyBatchTester,
    ToyEpochTrainer,
    ToyIterTrainer,
    ToySingleTester,
    rows_loader,
    save_weights,
    settings,
)
from vision3d_engine import (
    CheckpointError,
    ConfigError,
    EngineError,
    FolderError,
    Hook,
    ResultError,
    build_scheduler,
    get_parser,
    load_config,
)
from vision3d_engine.core.cli import parse_args
from vision3d_engine.core.locks import locked_folder
from vision3d_engine.run import tryout

KINDS = pytest.mark.parametrize("kind", [ToyEpochTrainer, ToyIterTrainer])


@pytest.fixture(autouse=True)
def _a_program_of_its_own(monkeypatch, tmp_path_factory):
    """Let each test be a program with a scratch folder of its own."""
    monkeypatch.setattr(tryout, "_SCRATCH", [])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("scratch")))


def tree_of(folder):
    """Return every file and folder with its content and the time of its last change."""
    paths = sorted(folder.rglob("*"))
    return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in [folder, *paths]}


def walked(trainer, name):
    return [call[1:] for call in trainer.calls if call[0] == name]


def log_of(trainer):
    return Path(trainer.log_file).read_text()


@KINDS
def test_so_many_steps_are_trained_and_validated_and_all_hooks_are_called(kind, tmp_path):
    usual = kind(settings(tmp_path / "usual", num_iters_per_epoch=2, limit_batches=2), rows_loader(12), rows_loader(12))
    usual.run()
    options = {"max_epoch": 30, "num_iters_per_epoch": 500, "save_every": "10 epochs", "fast_dev_run": 2}
    tried = kind(settings(tmp_path / "tried", **options), rows_loader(12), rows_loader(12))
    tried.run()
    assert [call for call in tried.calls if call[0] != "log"] == [call for call in usual.calls if call[0] != "log"]
    assert walked(tried, "train_step") == walked(tried, "val_step") == [(1, 1), (1, 2)]


@KINDS
def test_all_kinds_of_files_are_written_into_the_scratch_folder_and_none_into_the_run_folder(kind, tmp_path):
    trainer = kind(settings(tmp_path / "run", fast_dev_run=1))
    trainer.save_best_model_on_metric("mae", largest=False)
    trainer.run()
    scratch = Path(trainer.output_dir)
    names = {path.name for path in scratch.rglob("*")}
    assert {"checkpoint.pth", "epoch-1.pth", "best_mae.pth", "metrics.jsonl", "config.yaml", "env.json"} <= names
    assert not (tmp_path / "run").exists()


def test_the_log_says_where_it_works_and_what_was_walked(tmp_path):
    trainer = ToyEpochTrainer(settings(tmp_path, fast_dev_run=2))
    trainer.run()
    log, scratch = log_of(trainer), trainer.output_dir
    assert f"All files go into the scratch folder '{scratch}'" in log
    passed = next(line for line in log.splitlines() if "fast_dev_run passed" in line)
    assert "fast_dev_run passed: 2 training, 2 validation batches; saved " in passed
    assert "checkpoint.pth, and loaded checkpoint.pth back" in passed
    assert f"'{scratch}'; its checkpoints are removed when the program ends" in passed


@KINDS
def test_a_used_run_folder_is_left_as_it_was(kind, tmp_path):
    kind(settings(tmp_path)).run()
    before = tree_of(tmp_path)
    kind(settings(tmp_path, fast_dev_run=1)).run()
    assert tree_of(tmp_path) == before


def test_a_locked_run_folder_is_left_as_it_was(tmp_path):
    with locked_folder(tmp_path):
        before = tree_of(tmp_path)
        ToyEpochTrainer(settings(tmp_path, fast_dev_run=1)).run()
        assert tree_of(tmp_path) == before


def test_a_run_folder_that_cannot_be_written_does_not_matter(tmp_path):
    (tmp_path / "file").write_text("no folder")
    cfg = settings(tmp_path / "file", fast_dev_run=1)
    cfg["exp"] |= {name: str(tmp_path / "file") for name in ("checkpoint_dir", "log_dir", "event_dir")}
    ToyEpochTrainer(cfg).run()
    assert (tmp_path / "file").read_text() == "no folder"


def test_without_a_place_for_a_scratch_folder_the_error_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(FolderError, match=r"no scratch folder for fast_dev_run can be made: .* Set TMPDIR"):
        ToyEpochTrainer(settings(tmp_path, fast_dev_run=1))


def test_a_second_trainer_of_the_program_works_in_the_same_scratch_folder(tmp_path):
    first, second = (ToyEpochTrainer(settings(tmp_path, fast_dev_run=1)) for _ in range(2))
    first.run()
    second.run()
    assert first.output_dir == second.output_dir


# ------------------------------------------------------------------------------------------- what it proves


def test_a_checkpoint_that_does_not_load_back_fails_it(tmp_path):
    class Unloadable:
        def state_dict(self):
            return {"value": 1}

        def load_state_dict(self, state):
            raise ValueError("lost")

    trainer = ToyEpochTrainer(settings(tmp_path, fast_dev_run=1))
    trainer.register_state("unloadable", Unloadable())
    with pytest.raises(CheckpointError, match="state 'unloadable' of the checkpoint does not fit"):
        trainer.run()
    assert "fast_dev_run passed" not in log_of(trainer)


def test_a_metric_that_is_never_there_fails_it(tmp_path):
    trainer = ToyEpochTrainer(settings(tmp_path, fast_dev_run=1))
    trainer.save_best_model_on_metric("recall")
    with pytest.raises(ResultError, match="has no number 'recall'"):
        trainer.run()


def test_a_failure_ends_it_as_ever_and_the_log_says_where_it_is(tmp_path, capsys):
    class Failing(ToyEpochTrainer):
        def val_step(self, epoch, iteration, data_dict):
            raise ValueError("a bad cloud")

    trainer = Failing(settings(tmp_path, fast_dev_run=1))
    with pytest.raises(ValueError, match="a bad cloud"):
        trainer.run()
    assert f"in '{trainer.log_dir}'" in capsys.readouterr().err
    assert "Traceback" in log_of(trainer)


def test_the_word_that_it_has_passed_comes_behind_the_hooks_of_the_script(tmp_path):
    class Failing(Hook):
        def after_train(self):
            raise ValueError("in the last hook")

    trainer = ToyEpochTrainer(settings(tmp_path, fast_dev_run=1))
    trainer.add_hook(Failing())
    with pytest.raises(ValueError, match="in the last hook"):
        trainer.run()
    assert "passed" not in log_of(trainer)


def test_a_schedule_has_the_length_of_the_run_itself(tmp_path):
    cfg = settings(tmp_path, max_epoch=10, num_iters_per_epoch=100, fast_dev_run=2)
    cfg["scheduler"] = {"type": "Cosine", "warmup_steps": 500}
    trainer = ToyIterTrainer(cfg)
    trainer.scheduler = None
    trainer.register_scheduler(build_scheduler(trainer.optimizer, cfg))
    trainer.run()
    assert trainer.scheduler.length == 1000


def test_a_length_that_the_run_itself_would_lack_is_missing_here_too(tmp_path):
    class Stream:
        def __iter__(self):
            return iter(rows_loader(12))

    with pytest.raises(ConfigError, match="num_iters_per_epoch is missing"):
        ToyIterTrainer(settings(tmp_path, fast_dev_run=1), Stream()).run()


def test_validating_alone_saves_nothing_and_passes(tmp_path):
    trainer = ToyEpochTrainer(settings(tmp_path, fast_dev_run=1))
    trainer.run(only_validation=True)
    assert "fast_dev_run passed: 1 validation batches. What" in log_of(trainer)
    assert walked(trainer, "train_step") == []


# ------------------------------------------------------------------------------------------- what it loads


@KINDS
def test_a_resume_loads_the_checkpoint_of_the_run_and_begins_at_zero(kind, tmp_path):
    class Failing(kind):
        def before_train_step(self, epoch, iteration, data_dict):
            if (epoch, iteration) == (2, 3):
                raise InterruptedError

    options = {"max_epoch": 3, "num_iters_per_epoch": 3, "save_every": "1 iterations"}
    with pytest.raises(InterruptedError):
        Failing(settings(tmp_path, **options)).run()
    before = tree_of(tmp_path)
    weights = torch.load(tmp_path / "checkpoints" / "checkpoint.pth", weights_only=True)["model"]

    class Looking(kind):
        def before_train(self):
            self.loaded = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    tried = Looking(settings(tmp_path, resume=True, fast_dev_run=1, **options))
    tried.run()
    assert all(torch.equal(tried.loaded[name], weights[name]) for name in weights)
    assert walked(tried, "train_step") == [(1, 1)]
    assert tree_of(tmp_path) == before


def test_a_resume_without_a_checkpoint_begins_at_zero(tmp_path):
    trainer = ToyEpochTrainer(settings(tmp_path / "run", resume=True, fast_dev_run=1))
    trainer.run()
    assert walked(trainer, "train_step") == [(1, 1)]


def test_a_checkpoint_by_name_is_looked_for_in_the_run_folder(tmp_path):
    save_weights(tmp_path)
    trainer = ToyEpochTrainer(settings(tmp_path, checkpoint="weights.pth", fast_dev_run=1))
    trainer.run()
    assert f"loaded the weights of {tmp_path / 'checkpoints' / 'weights.pth'}" in log_of(trainer)


@pytest.mark.parametrize("kind", [ToySingleTester, ToyBatchTester])
def test_a_tester_tests_so_many_batches_of_the_checkpoint_of_the_run(kind, tmp_path):
    save_weights(tmp_path)
    before = tree_of(tmp_path)
    tester = kind(settings(tmp_path, fast_dev_run=2))
    tester.run()
    assert walked(tester, "test_step") == [(1,), (2,)]
    assert "fast_dev_run passed: 2 test batches. What" in log_of(tester)
    assert tree_of(tmp_path) == before


def test_a_tester_finds_the_epoch_that_a_flag_names_in_the_run_folder(argv, tmp_path):
    ToyEpochTrainer(settings(tmp_path)).run()
    argv("--test_epoch", "1", "--fast_dev_run")
    tester = ToySingleTester(settings(tmp_path), checkpoint=None)
    tester.run()
    assert f"loaded {tmp_path / 'checkpoints' / 'epoch-1.pth'}" in log_of(tester)


def test_a_script_that_trains_and_then_tests_tests_what_it_has_trained(tmp_path):
    ToyEpochTrainer(settings(tmp_path / "run", fast_dev_run=1)).run()
    tester = ToySingleTester(settings(tmp_path / "run", fast_dev_run=1), checkpoint="epoch-1.pth")
    tester.run()
    assert f"loaded {Path(tester.output_dir) / 'checkpoints' / 'epoch-1.pth'}" in log_of(tester)


# ------------------------------------------------------------------------------------------- the flag


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--fast_dev_run"], 1),
        (["--fast_dev_run", "3"], 3),
        (["--fast_dev_run=3"], 3),
        (["--fast_dev_run", "--log_steps", "5"], 1),
        (["--no-fast_dev_run"], 0),
        ([], 2),
    ],
)
def test_the_flag_takes_a_number_or_means_one(words, expected, argv, tmp_path):
    argv(*words)
    assert ToyEpochTrainer(settings(tmp_path, fast_dev_run=2)).args.fast_dev_run == expected


def test_the_flag_leaves_a_word_of_the_script_alone(argv, tmp_path):
    argv("--fast_dev_run", "config.yaml")
    get_parser().add_argument("config")
    trainer = ToyEpochTrainer(settings(tmp_path))
    assert (trainer.args.fast_dev_run, trainer.args.config) == (1, "config.yaml")


def test_a_word_behind_the_flag_that_nobody_reads_is_an_error(argv, tmp_path):
    argv("--fast_dev_run", "two")
    with pytest.raises(ConfigError, match="nobody reads 'two' behind --fast_dev_run, which takes a number"):
        ToyEpochTrainer(settings(tmp_path)).run()


def test_the_two_ways_of_trying_out_are_refused_together(argv, tmp_path):
    argv("--fast_dev_run", "--overfit", "4")
    with pytest.raises(ConfigError, match=re.escape("cfg.trainer.overfit is 4 and cfg.trainer.fast_dev_run is 1")):
        ToyEpochTrainer(settings(tmp_path))


def test_help_lists_both_with_what_they_do(argv, capsys):
    argv("--help")
    load_config(argv=[])
    with pytest.raises(SystemExit):
        parse_args()
    said = " ".join(capsys.readouterr().out.split())
    assert "--overfit N train and validate on the same N batches over and over" in said
    assert "a few steps of everything, and a save and a load, in a scratch folder (default: 1)" in said
    assert "--trainer.overfit 0" in said
    assert "--trainer.fast_dev_run 0" in said


def test_a_script_that_never_validates_is_tried_out_without_a_validation(tmp_path):
    toy = ToyEpochTrainer(settings(tmp_path, val_every="never", fast_dev_run=2))
    toy.val_loader = None
    toy.run()
    assert (len(walked(toy, "train_step")), walked(toy, "val_step")) == (2, [])


@pytest.mark.parametrize(
    ("options", "metric"),
    [({"val_every": "never"}, "mae"), ({"early_stopping_metric": "mea", "early_stopping_mode": "min"}, None)],
)
def test_what_the_run_itself_would_refuse_of_its_validations_a_try_out_refuses_too(tmp_path, options, metric):
    toy = ToyEpochTrainer(settings(tmp_path, fast_dev_run=1, **options))
    if metric:
        toy.save_best_model_on_metric(metric)
    with pytest.raises(EngineError, match=r"trainer.val_every is 'never'|no number 'mea'; did you mean 'mae'"):
        toy.run()


def test_a_resume_of_a_run_that_was_ended_is_tried_out_from_the_beginning(tmp_path):
    class Ended(ToyEpochTrainer):
        def after_val_epoch(self, epoch, summary_dict):
            super().after_val_epoch(epoch, summary_dict)
            if not self._context.settings.fast_dev_run:
                self.stop("enough")

        def after_train(self):
            super().after_train()
            if not self._context.settings.fast_dev_run:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Ended(settings(tmp_path, max_epoch=5)).run()
    tried = Ended(settings(tmp_path, max_epoch=5, resume=True, fast_dev_run=2))
    tried.run()
    assert len(walked(tried, "train_step")) == 2
