"""Steps that a run has not made are refused before anything is trained for them."""

import pytest

from tests.toys import ToyEpochTrainer, settings
from vision3d_engine.core.errors import EngineError
from vision3d_engine.loop.hooks import PROBES
from vision3d_engine.replay.plan import Plan, Target
from vision3d_engine.replay.process import prepare
from vision3d_engine.run.session import REDIRECTIONS


@pytest.fixture
def replayed(tmp_path):
    """Return what a replay answers, and how many steps were trained for it."""

    def replay(make, **target):
        steps, scratch = [], tmp_path / "scratch"
        scratch.mkdir()
        plan = Plan("script.py", Target(**target), str(scratch))
        prepare(plan)
        try:
            with pytest.raises(SystemExit):
                _counting(make(), steps).run()
        finally:
            PROBES.clear()
            REDIRECTIONS.clear()
        return plan.answer.read(), len(steps)

    return replay


def _counting(toy, steps):
    toy.before_train_step = lambda *_: steps.append(toy.total_steps)
    return toy


def toys(folder, **trainer):
    """Make trainers of a run with epochs of 3 iterations."""
    return lambda: ToyEpochTrainer(settings(folder, **{"max_epoch": 3, "log_steps": 2, **trainer}))


@pytest.mark.parametrize(
    "target", [{"step": 10}, {"step": 1000}, {"epoch": 3, "iteration": 4}, {"epoch": 9, "iteration": 1}]
)
def test_a_step_behind_the_end_of_a_run_is_refused_at_once_with_how_many_it_has_made(tmp_path, replayed, target):
    toys(tmp_path / "run")().run()
    answer, trained = replayed(toys(tmp_path / "run"), **target)
    assert f"replay got {Target(**target)}; the run has made 9 steps (of epoch 3 iteration 3 is" in answer["refused"]
    assert trained == 0


def test_an_iteration_that_its_epoch_does_not_have_is_refused_at_once(tmp_path, replayed):
    toys(tmp_path / "run")().run()
    answer, trained = replayed(toys(tmp_path / "run"), epoch=1, iteration=4)
    assert (answer["refused"], trained) == ("replay got epoch 1, iteration 4; epoch 1 has 3 iterations", 0)


def test_where_no_steps_are_recorded_a_replay_ends_with_the_epoch(tmp_path, replayed):
    toys(tmp_path / "run")().run()
    (tmp_path / "run" / "logs" / "steps.jsonl").unlink()
    answer, trained = replayed(toys(tmp_path / "run"), epoch=1, iteration=4)
    assert (answer["refused"], trained) == ("replay got epoch 1, iteration 4; epoch 1 has 3 iterations", 3)


def broken(folder, at, **trainer):
    """Make a run that a step breaks off, and return what makes its trainers."""
    make = toys(folder, **trainer)
    toy = make()

    def fail(*_):
        if toy.total_steps == at:
            raise EngineError("broken off")

    toy.after_train_step = fail
    with pytest.raises(EngineError, match="broken off"):
        toy.run()
    return make


@pytest.mark.parametrize("target", [{"step": 6}, {"epoch": 2, "iteration": 3}])
def test_of_a_run_that_was_broken_off_the_steps_up_to_the_next_log_line_are_replayed(tmp_path, replayed, target):
    make = broken(tmp_path / "run", at=6)  # its last line is that of step 5
    assert "step 6: epoch 2, iteration 3" in replayed(make, **target)[0]["text"]


@pytest.mark.parametrize("target", [{"step": 9}, {"epoch": 3, "iteration": 4}])
def test_and_those_behind_it_are_refused_with_the_last_one_that_is_recorded(tmp_path, replayed, target):
    make = broken(tmp_path / "run", at=6)
    answer, trained = replayed(make, **target)
    assert "the run has made 5 steps (of epoch 2 iteration 2 is the last that it has recorded)" in answer["refused"]
    assert trained == 0


def test_a_run_that_has_come_to_no_log_line_is_replayed(tmp_path, replayed):
    make = broken(tmp_path / "run", at=2, log_steps=100)
    assert "step 2: epoch 1, iteration 2" in replayed(make, step=2)[0]["text"]


def test_a_folder_without_a_run_is_refused_before_anything_is_trained(tmp_path, replayed):
    answer, trained = replayed(toys(tmp_path / "nowhere"), step=2)
    assert f"there is no run in '{tmp_path / 'nowhere'}'" in answer["refused"]
    assert "Expected are, behind --, the arguments that the run had" in answer["refused"]
    assert trained == 0
    assert not (tmp_path / "nowhere" / "logs").exists()
