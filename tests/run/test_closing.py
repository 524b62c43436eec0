"""The last word of a run in its log."""

import os
import re
import signal
from pathlib import Path

import pytest
import torch

from tests.patience import skip_if_ignored
from tests.toys import ToyEpochTrainer, rows_loader, settings


class Scored(ToyEpochTrainer):
    """Has a score that is best in the second epoch."""

    def after_val_epoch(self, epoch, summary_dict):
        summary_dict["score"] = (0.5, 0.9, 0.7)[epoch - 1]


def made(folder, kind=Scored, **trainer):
    toy = kind(settings(folder, **trainer), rows_loader(5))
    toy.save_best_model_on_metric("score")
    toy.save_best_model_on_metric("mae", largest=False)
    return toy


def log_of(toy):
    return Path(toy.log_file).read_text()


def block_of(toy):
    """Return the first line of the last block, and its other lines by name."""
    head, *lines = log_of(toy).rpartition(" | SUCCESS | ")[2].splitlines()
    return head, dict(line.strip().split("  ", 1) for line in lines)


def test_a_run_ends_with_its_best_models_its_counters_its_folder_and_its_time(tmp_path):
    toy = made(tmp_path, max_epoch=3, grad_acc_steps=2)
    toy.run()
    head, lines = block_of(toy)
    assert head == "run ended: epoch 3/3, 9 batches, 6 updates, 15 samples"
    assert list(lines) == ["best score", "best mae", "run folder", "time"]
    assert lines["best score"].strip() == "0.900 in epoch 2, checkpoints/best_score.pth"
    assert lines["best mae"].endswith(" in epoch 3, checkpoints/best_mae.pth")
    assert lines["run folder"].strip() == str(tmp_path)
    assert re.fullmatch(r"\d:\d\d:\d\d", lines["time"].strip())


def test_the_columns_are_aligned_and_many_metrics_make_no_long_block(tmp_path):
    class Many(ToyEpochTrainer):
        def after_val_epoch(self, epoch, summary_dict):
            summary_dict |= {f"score{number}": number for number in range(16)}

    toy = Many(settings(tmp_path))
    for number in range(16):
        toy.save_best_model_on_metric(f"score{number}")
    toy.run()
    _, *lines = log_of(toy).rpartition(" | SUCCESS | ")[2].splitlines()
    assert len(lines) <= 16
    assert len({re.match(r"    \S+( \S+)? +", line).end() for line in lines}) == 1
    assert lines[12].split() == ["...", "and", "4", "more"]


def test_a_resumed_run_tells_the_time_of_all_of_it_and_the_best_of_before(tmp_path):
    made(tmp_path, max_epoch=2).run()
    path = tmp_path / "checkpoints" / "checkpoint.pth"
    state = torch.load(path, weights_only=True)
    assert 0 <= state["about"]["run_s"] < 600
    state["about"]["run_s"] = 7200.0
    torch.save(state, path)
    toy = made(tmp_path, max_epoch=3, resume=True)
    toy.run()
    _, lines = block_of(toy)
    assert re.fullmatch(r"0:\d\d:\d\d; the whole run 2:\d\d:\d\d", lines["time"].strip())
    assert "0.900 in epoch 2" in lines["best score"]


def test_an_older_checkpoint_leaves_out_what_it_does_not_tell(tmp_path):
    made(tmp_path, max_epoch=2).run()
    path = tmp_path / "checkpoints" / "checkpoint.pth"
    state = torch.load(path, weights_only=True)
    del state["about"]["run_s"]
    for best in state["ckpt_manager"]["best_scores"].values():
        del best["epoch"]
    torch.save(state, path)
    toy = made(tmp_path, max_epoch=3, resume=True)
    toy.run()
    _, lines = block_of(toy)
    assert "whole run" not in lines["time"]
    assert lines["best score"].strip() == "0.900, checkpoints/best_score.pth"


def test_warnings_are_counted(tmp_path):
    toy = made(tmp_path)
    toy.after_train = lambda: [toy.log("careful", level=level) for level in ("WARNING", "ERROR", "INFO")]
    toy.run()
    assert block_of(toy)[1]["warnings"].strip() == f"2, in {toy.log_file}"


def test_a_stopped_run_says_in_one_line_how_far_it_is(tmp_path):
    skip_if_ignored(signal.SIGTERM)

    class Stopped(Scored):
        def after_train_step(self, epoch, iteration, data_dict, output_dict, result_dict):
            if self.total_steps == 4:
                os.kill(os.getpid(), signal.SIGTERM)

    toy = made(tmp_path, Stopped, max_epoch=3)
    with pytest.raises(SystemExit):
        toy.run()
    last = log_of(toy).splitlines()[-1]
    assert " | so far: epoch 2/3, 4 batches, 4 updates, 7 samples; time 0:" in last
    assert "run ended" not in log_of(toy)


@pytest.mark.parametrize("way", ["error", "validation"])
def test_neither_an_error_nor_a_mere_validation_has_a_last_word(tmp_path, way):
    class Fails(Scored):
        def train_step(self, epoch, iteration, data_dict):
            raise ValueError("boom")

    toy = made(tmp_path, Fails)
    if way == "validation":
        toy.run(only_validation=True)
    else:
        with pytest.raises(ValueError, match="boom"):
            toy.run()
    assert "run ended" not in log_of(toy)
    assert "so far" not in log_of(toy)
