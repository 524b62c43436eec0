"""The demo in a shortened form, as a person starts it."""

import pytest

from tests.stories.forking import run_forked
from vision3d_engine.commands import main
from vision3d_engine.demo.picture import draw_result


def demo(folder, *words):
    return run_forked(["-m", "vision3d_engine", "demo", *words], cwd=folder)


SHORT = ("--num-train", "40", "--num-val", "20", "--num-points", "64", "--max-epoch", "2", "--batch-size", "10")


def test_the_demo_trains_tests_draws_and_says_what_to_do_next(tmp_path):
    done = demo(tmp_path, *SHORT)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "shapes"
    for name in ("checkpoints/best_accuracy.pth", "metrics.jsonl", "config.yaml", "env.json", "result.png"):
        assert (run / name).stat().st_size > 0
    assert "of the validation clouds are classified rightly" in done.stdout
    assert "tensorboard --logdir runs/shapes" in done.stdout
    assert done.stdout.startswith("python ")
    assert "vision3d-engine demo --output-dir runs/shapes --resume --max-epoch 6" in done.stdout
    again = demo(tmp_path, *SHORT, "--resume", "--max-epoch", "3", "--no-picture")
    assert again.returncode == 0, again.stderr
    assert "checkpoints/checkpoint.pth: epoch 2" in again.stderr


def test_a_mistyped_option_names_the_nearest(capsys):
    with pytest.raises(SystemExit):
        main(["demo", "--max-epochs", "3"])
    assert "--max-epoch" in capsys.readouterr().err


def test_an_error_of_the_engine_is_a_message_not_a_traceback(tmp_path):
    (tmp_path / "file").write_text("")
    done = demo(tmp_path, *SHORT, "--output-dir", "file/run")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: cannot write into the folder '{tmp_path.resolve() / 'file' / 'run'}'")


def test_the_picture_is_drawn_with_mistakes(tmp_path):
    import numpy as np

    values = {"loss": 1.0, "accuracy": 0.5}
    rows = [{"phase": phase, "epoch": epoch, "values": values} for epoch in (1, 2) for phase in ("train_epoch", "val")]
    cloud = np.random.default_rng(0).normal(size=(30, 3))
    draw_result(tmp_path / "a.png", rows, [(cloud, "mug", "mug"), (cloud, "car", "bed")])
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
