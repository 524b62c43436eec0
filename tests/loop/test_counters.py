"""The counters in the rows of a run, and where its curves lie."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import SessionLog

from tests.toys import Rows, ToyEpochTrainer, ToyIterTrainer, rows_loader
from tests.toys import settings as options_of
from vision3d_engine import ConfigError, build_dataloader

NAMES = ("epoch", "total_steps", "updates", "samples")


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def counters_of(folder):
    """Return phase and counters of each row."""
    return [(row["phase"], *(row.get(name) for name in NAMES)) for row in rows_of(folder)]


def curve_of(folder, tag):
    """Return the steps of a curve as TensorBoard shows it, which forgets what a later file tells it to.

    Files are read in the order in which they were written; their names, of one second, may be sorted otherwise.
    """
    steps = []
    for path in sorted((folder / "events").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        for event in EventFileLoader(str(path)).Load():
            if event.session_log.status == SessionLog.START:
                steps = [step for step in steps if step < event.step]
            steps += [event.step for value in event.summary.value if value.tag == tag]
    return steps


class Killed(ToyEpochTrainer):
    """Fails in the seventh step."""

    def after_train_step(self, epoch, iteration, data_dict, output_dict, result_dict):
        if self.total_steps == 7:
            raise ValueError("boom")


def test_every_row_of_the_engine_has_all_counters(tmp_path):
    toy = ToyEpochTrainer(options_of(tmp_path, max_epoch=2, log_steps=2, grad_acc_steps=2), rows_loader(5))
    toy.run()
    expected = [
        ("train", 1, 2, 1, 4),
        ("train", 1, 3, 2, 5),
        ("train_epoch", 1, 3, 2, 5),
        ("val", 1, 3, 2, 5),
        ("train", 2, 5, 3, 9),
        ("train", 2, 6, 4, 10),
        ("train_epoch", 2, 6, 4, 10),
        ("val", 2, 6, 4, 10),
    ]
    assert counters_of(tmp_path) == expected
    assert (toy.total_steps, toy.updates, toy.samples) == (6, 4, 10)


def test_samples_are_shown_to_hooks_after_each_step(tmp_path):
    seen = []

    class Looks(ToyEpochTrainer):
        def after_train_step(self, *args):
            seen.append((self.updates, self.samples))

    Looks(options_of(tmp_path), rows_loader(5)).run()
    assert seen == [(1, 2), (2, 4), (3, 5)]


def test_a_script_may_have_attributes_of_its_own_under_these_names(tmp_path):
    class Own(ToyEpochTrainer):
        def train_step(self, epoch, iteration, data_dict):
            self.samples, self.updates = ["a"], "mine"
            return super().train_step(epoch, iteration, data_dict)

    Own(options_of(tmp_path), rows_loader(5)).run()
    assert counters_of(tmp_path)[-1] == ("val", 1, 3, 3, 5)


@pytest.mark.parametrize("means", ["samples", "batches"])
def test_where_batches_have_no_known_size_samples_are_left_out(tmp_path, means):
    batches = [{"x": torch.randn(2, 3).double(), "y": torch.randn(2).double()} for _ in range(3)]
    loader = batches if means == "samples" else rows_loader(6)
    toy = ToyEpochTrainer(options_of(tmp_path, means=means), loader)
    toy.run()
    assert [row for row in rows_of(tmp_path) if "samples" in row] == []
    assert toy.samples is None
    assert "samples" not in toy.metadata


@settings(max_examples=12)
@given(
    count=st.integers(1, 11),
    batch_size=st.integers(1, 4),
    window=st.integers(1, 3),
    kill_at=st.integers(1, 12),
    kind=st.sampled_from(["epoch", "iter"]),
)
def test_counters_go_on_exactly_from_any_step(tmp_path_factory, count, batch_size, window, kill_at, kind):
    """Also when the step that fails is in the midst of a window, and the run is begun again without a resume."""
    base = {"epoch": ToyEpochTrainer, "iter": ToyIterTrainer}[kind]
    options = {"max_epoch": 2, "log_steps": 1, "grad_acc_steps": window, "save_every": "2 iterations"}

    class Breaks(base):
        def after_train_step(self, epoch, iteration, data_dict, output_dict, result_dict):
            if self.total_steps == kill_at and not self.has_failed:
                self.has_failed = True
                raise ValueError("boom")

        has_failed = False

    def made(kind, folder, **more):
        loader = build_dataloader(Rows(count), batch_size, num_workers=0, shuffle=True)
        return kind(options_of(folder, **options, **more), loader)

    straight, resumed, again = (tmp_path_factory.mktemp(name) for name in ("straight", "resumed", "again"))
    made(base, straight).run()
    for folder in (resumed, again):
        toy = made(Breaks, folder)
        if kill_at <= rows_of(straight)[-1]["total_steps"]:
            with pytest.raises(ValueError, match="boom"):
                toy.run()
        toy = made(base, resumed, resume=True) if folder is resumed else toy
        toy.run()
        assert toy.samples == rows_of(straight)[-1]["samples"]
    if kind == "epoch":
        assert toy.samples == 2 * count
    assert counters_of(resumed) == counters_of(straight)
    assert counters_of(again)[-1] == counters_of(straight)[-1]


def test_the_counters_of_a_file_of_weights_go_on(tmp_path):
    ToyEpochTrainer(options_of(tmp_path / "one", grad_acc_steps=2), rows_loader(5)).run()
    words = {"resume": True, "checkpoint": str(tmp_path / "one" / "checkpoints" / "epoch-1.pth"), "grad_acc_steps": 2}
    toy = ToyEpochTrainer(options_of(tmp_path / "two", max_epoch=2, **words), rows_loader(5))
    toy.run()
    assert counters_of(tmp_path / "two")[-1] == ("val", 2, 6, 4, 10)


def test_a_checkpoint_that_does_not_tell_its_samples_leaves_them_unknown(tmp_path):
    ToyEpochTrainer(options_of(tmp_path), rows_loader(5)).run()
    path = tmp_path / "checkpoints" / "checkpoint.pth"
    state = torch.load(path, weights_only=True)
    for name in ("samples", "own_samples", "knows_samples"):
        del state["progress"][name]
    state["metadata"] = {"epoch": 1, "total_steps": 3}
    torch.save(state, path)
    toy = ToyEpochTrainer(options_of(tmp_path, max_epoch=2, resume=True), rows_loader(5))
    toy.run()
    assert toy.samples is None
    assert counters_of(tmp_path)[-1] == ("val", 2, 6, 6, None)


# ------------------------------------------------------------------------------------------- the axis


AXES = {None: ([2, 3, 5, 6], [1, 2]), "batches": ([2, 3, 5, 6], [3, 6])}
AXES |= {"updates": ([1, 2, 3, 4], [2, 4]), "samples": ([4, 5, 9, 10], [5, 10])}


@pytest.mark.parametrize("axis", AXES)
def test_curves_lie_over_the_axis_that_is_asked_for(tmp_path, axis):
    options = {"max_epoch": 2, "log_steps": 2, "grad_acc_steps": 2, "curve_axis": axis}
    ToyEpochTrainer(options_of(tmp_path, **options), rows_loader(5)).run()
    assert (curve_of(tmp_path, "train/loss"), curve_of(tmp_path, "val/mae")) == AXES[axis]
    steps = [row["step"] for row in rows_of(tmp_path) if row["phase"] == "train"]
    assert steps == AXES[axis][0]


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("source", ["checkpoint.pth", "epoch-1.pth"])
def test_a_killed_and_resumed_run_leaves_each_point_once_on_every_axis(tmp_path, axis, source):
    """From a file that knows how far the curves were, and from one of weights, which does not."""
    options = {"max_epoch": 2, "log_steps": 1, "grad_acc_steps": 2, "curve_axis": axis}
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    ToyEpochTrainer(options_of(straight, **options), rows_loader(8)).run()
    with pytest.raises(ValueError, match="boom"):
        Killed(options_of(broken, **options), rows_loader(8)).run()
    words = {"resume": True} | ({} if source == "checkpoint.pth" else {"checkpoint": source})
    ToyEpochTrainer(options_of(broken, **options, **words), rows_loader(8)).run()
    assert curve_of(broken, "train/loss") == curve_of(straight, "train/loss")
    train = [row for row in counters_of(broken) if row[0] == "train"]
    assert train == [row for row in counters_of(straight) if row[0] == "train"]
    if source == "checkpoint.pth":
        assert curve_of(broken, "val/mae") == curve_of(straight, "val/mae")


def test_a_resume_with_another_axis_says_which_one_is_in_force(tmp_path):
    ToyEpochTrainer(options_of(tmp_path), rows_loader(6)).run()
    toy = ToyEpochTrainer(options_of(tmp_path, max_epoch=2, resume=True, curve_axis="samples"), rows_loader(6))
    toy.run()
    with open(toy.log_file) as file:  # noqa: PTH123
        assert "in force are the script's: curve_axis none in the checkpoint, samples in the script" in file.read()
    assert curve_of(tmp_path, "train/loss") == [3, 12]


@pytest.mark.parametrize("only_validation", [False, True])
def test_curves_over_samples_need_batches_of_a_known_size(tmp_path, only_validation):
    batches = [{"x": torch.randn(2, 3).double(), "y": torch.randn(2).double()} for _ in range(3)]
    toy = ToyEpochTrainer(options_of(tmp_path, curve_axis="samples"), batches)
    with pytest.raises(ConfigError, match=r"curve_axis is 'samples', but their number is not known.*Or choose"):
        toy.run(only_validation)
    assert toy.calls == []
