"""What a test leaves in its folder, and when it goes on with one that was stopped."""

import csv
import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.toys import Rows, ToyBatchTester, ToySingleTester, linear_model, rows_loader, save_weights, settings
from vision3d_engine import build_dataloader
from vision3d_engine.core.errors import FolderError, FolderInUseError, ResultError
from vision3d_engine.core.locks import locked_folder
from vision3d_engine.loop import case_block
from vision3d_engine.results import folder as results_folder
from vision3d_engine.results import sample_files
from vision3d_engine.results.folder import ResultsFolder


class Saving(ToySingleTester):
    """Saves a file for each sample; stops, as a full disk or a bug may stop it, in a batch."""

    stops_at = 0

    def eval_step(self, iteration, data_dict, output_dict):
        self.save_result("prediction", {"y": output_dict["prediction"], "draw": torch.rand(())})
        return super().eval_step(iteration, data_dict, output_dict) | {"draw": torch.rand(()), "iteration": iteration}

    def test_step(self, iteration, data_dict):
        if iteration == self.stops_at:
            raise RuntimeError("stopped")
        return super().test_step(iteration, data_dict)


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch):
    monkeypatch.setattr(case_block, "_CASES", 2)


def stop(toy, at):
    toy.stops_at = at
    with pytest.raises(RuntimeError, match="stopped"):
        toy.run()
    return toy


def stopped(folder, at, **trainer):
    return stop(Saving(settings(folder, **trainer), rows_loader(7, batch_size=1)), at)


def gone_on(kind, folder, loader=None):
    """Run a test that is stopped in batch 6, and go on with it; return the tester that has done so."""
    loader = loader or rows_loader(7, batch_size=1)
    stop(kind(settings(folder), loader), 6)
    again = kind(settings(folder, resume=True), loader)
    again.run()
    return again


def whole(folder, **trainer):
    toy = Saving(settings(folder, **trainer), rows_loader(7, batch_size=1))
    toy.run()
    return toy


def rows_of(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def log_of(toy):
    return Path(toy.log_file).read_text()


# ------------------------------------------------------------------------------------------------ tables


def test_every_test_leaves_a_row_for_each_case_and_a_summary(tmp_path):
    model = save_weights(tmp_path)
    toy = ToyBatchTester(settings(tmp_path))
    toy.run()
    data = Rows(5)
    errors = (model(data.x)[:, 0] - data.y).abs().tolist()
    rows = rows_of(tmp_path)
    assert [(row["index"], row["name"]) for row in rows] == [(i, str(i)) for i in range(5)]
    assert [row["values"]["mae"] for row in rows] == pytest.approx(errors, abs=1e-12)
    with (tmp_path / "results.csv").open() as file:
        assert [float(row["mae"]) for row in csv.DictReader(file)] == [row["values"]["mae"] for row in rows]
    summary = json.loads((tmp_path / "results.json").read_text())
    assert summary["cases"] == 5
    assert summary["summary"] == {"mae": toy.summary["mae"]}
    assert summary["statistics"]["mae"]["median"] == pytest.approx(np.median(errors), abs=1e-12)
    assert summary["checkpoint"] == str(tmp_path / "checkpoints" / "weights.pth")


def test_rows_are_in_the_order_of_the_data_set_also_of_a_loader_that_shuffles(tmp_path):
    save_weights(tmp_path)

    class Indexed(ToyBatchTester):
        def eval_step(self, iteration, data_dict, output_dict):
            return {"y": data_dict["y"]}

    Indexed(settings(tmp_path), build_dataloader(Rows(9), 2, num_workers=0, shuffle=True)).run()
    assert [row["values"]["y"] for row in rows_of(tmp_path)] == Rows(9).y.tolist()


def test_a_case_is_called_what_its_data_say_or_what_the_script_says(tmp_path):
    save_weights(tmp_path)
    data = [{"x": torch.zeros(1, 3).double(), "y": torch.zeros(1), "name": [name]} for name in ("a/b", "c")]
    ToySingleTester(settings(tmp_path), data).run()
    assert [row["name"] for row in rows_of(tmp_path)] == ["a/b", "c"]

    class Named(ToySingleTester):
        def sample_name(self, iteration, data_dict):
            return f"scene {iteration}"

    Named(settings(tmp_path), data).run()
    assert [row["name"] for row in rows_of(tmp_path)] == ["scene 1", "scene 2"]


def test_the_means_honour_the_weights_of_the_cases(tmp_path):
    save_weights(tmp_path)

    class Weighted(ToySingleTester):
        def eval_step(self, iteration, data_dict, output_dict):
            return {"a": torch.tensor(float(iteration)), "b": float("nan") if iteration == 1 else 2.0}

        def metric_weight(self, data_dict, output_dict, result_dict):
            return {"a": result_dict["a"], "b": 0 if result_dict["a"] == 1 else 1}

    toy = Weighted(settings(tmp_path))
    toy.run()
    assert toy.summary == {"a": (1 + 4 + 9) / 6, "b": 2.0}


@pytest.mark.parametrize("name", ["index", "name"])
def test_a_number_with_the_name_of_a_column_that_every_table_has_is_refused(tmp_path, name):
    class Taken(Saving):
        def eval_step(self, iteration, data_dict, output_dict):
            return {name: 1.0}

    save_weights(tmp_path)
    with pytest.raises(ResultError, match=f"eval_step returned a number '{name}', which is a column of results.csv"):
        Taken(settings(tmp_path)).run()


def test_the_log_tells_quartiles_and_the_worst_cases_that_are_asked_for(tmp_path):
    save_weights(tmp_path)
    toy = Saving(settings(tmp_path), rows_loader(7, batch_size=1))
    toy.worst_by, toy.worst_count = ("iteration", "largest"), 2
    toy.run()
    text = log_of(toy)
    assert "lower_quartile" in text
    assert "worst cases, largest iteration first:\n    6  iteration: 7\n    5  iteration: 6\n" in text


def test_a_test_that_saves_no_file_runs_again_and_again_in_one_folder(tmp_path):
    save_weights(tmp_path)
    ToySingleTester(settings(tmp_path), rows_loader(7, batch_size=1)).run()
    (tmp_path / "results" / "mine").mkdir()
    (tmp_path / "results" / "mine" / "a.npz").write_text("of the script")
    ToySingleTester(settings(tmp_path)).run()
    assert len(rows_of(tmp_path)) == 3
    assert (tmp_path / "results" / "mine" / "a.npz").exists()


def test_a_stopped_test_leaves_the_table_of_the_one_before_as_it_was(tmp_path):
    save_weights(tmp_path)
    ToySingleTester(settings(tmp_path)).run()
    before = (tmp_path / "results.jsonl").read_bytes()
    stopped(tmp_path, at=4)
    assert (tmp_path / "results.jsonl").read_bytes() == before


# ------------------------------------------------------------------------------------------------ several tests


class LoMatch(Saving):
    test_name = "lomatch"


def test_tests_of_other_names_stay_beside_each_other_in_one_folder(tmp_path):
    save_weights(tmp_path)
    whole(tmp_path)
    LoMatch(settings(tmp_path), rows_loader(4, batch_size=1)).run()
    whole(tmp_path, test_name="3DMatch/val")
    for name, cases in {"results": 7, "results-lomatch": 4, "results-3DMatch_val": 7}.items():
        assert len((tmp_path / f"{name}.jsonl").read_text().splitlines()) == cases
        assert json.loads((tmp_path / f"{name}.json").read_text())["cases"] == cases
        assert (tmp_path / f"{name}.csv").exists()
        assert len(list((tmp_path / name / "prediction").iterdir())) == cases


def test_a_script_finds_all_files_and_rows_of_its_test_when_it_has_ended(tmp_path):
    save_weights(tmp_path)
    found = {}

    class Drawing(LoMatch):
        def after_test_epoch(self, summary_dict):
            super().after_test_epoch(summary_dict)
            rows = Path(f"{self.results_dir}.jsonl").read_text().splitlines()
            found["rows"] = [json.loads(row)["name"] for row in rows]
            found["files"] = sorted(path.stem for path in (self.results_dir / "prediction").iterdir())

    gone_on(Drawing, tmp_path)
    assert found["rows"] == found["files"] == [str(k) for k in range(7)]


def test_a_named_test_goes_on_with_its_own_attempt_alone(tmp_path):
    save_weights(tmp_path)
    stopped(tmp_path, at=5)
    stopped(tmp_path, at=3, test_name="other")
    toy = whole(tmp_path, test_name="other", resume=True)
    assert [call for call in toy.calls if call[0] == "test_step"] == [("test_step", k) for k in (3, 4, 5, 6, 7)]


def test_the_name_of_a_flag_wins_over_that_of_the_script(tmp_path, monkeypatch):
    save_weights(tmp_path)
    monkeypatch.setattr("sys.argv", ["test.py", "--test_name", "asked"])
    LoMatch(settings(tmp_path), rows_loader(4, batch_size=1)).run()
    assert sorted(path.name for path in tmp_path.glob("results*.json")) == ["results-asked.json"]


def test_replacing_the_tables_of_another_test_is_said_and_those_of_other_weights_are_not(tmp_path):
    save_weights(tmp_path)
    ToySingleTester(settings(tmp_path)).run()
    torch.save({"model": torch.nn.Linear(3, 1).double().state_dict()}, tmp_path / "checkpoints" / "weights.pth")
    again, other = ToySingleTester(settings(tmp_path)), ToyBatchTester(settings(tmp_path))
    again.run()
    assert "will replace" not in log_of(again)
    other.run()
    assert "will replace" in log_of(other)
    (line,) = [line for line in log_of(other).splitlines() if "will replace" in line]
    assert "results.csv' of another (tester was 'ToySingleTester', is 'ToyBatchTester'" in line
    assert line.endswith("--test_name keeps both")


# ------------------------------------------------------------------------------------------------ files


def test_a_file_of_each_sample_lies_under_the_name_of_its_kind(tmp_path):
    save_weights(tmp_path)
    whole(tmp_path)
    files = sorted(path.name for path in (tmp_path / "results" / "prediction").iterdir())
    assert files == [f"{i}.npz" for i in range(7)]
    found = np.load(tmp_path / "results" / "prediction" / "3.npz")
    assert found["y"] == pytest.approx(linear_model()(Rows(7).x)[3].detach().numpy())


def test_two_samples_of_one_name_are_an_error_that_says_so(tmp_path):
    save_weights(tmp_path)

    class Same(Saving):
        def sample_name(self, iteration, data_dict):
            return "same"

    with pytest.raises(ResultError, match=r"sample 'same': '.*same.npz' is there already. Two samples have this name"):
        Same(settings(tmp_path)).run()


@pytest.mark.parametrize(
    ("word", "message"), [("nzp", "did you mean 'npz'.*there are npz, ply"), ("ply", "needs 'points'")]
)
def test_a_format_that_is_none_or_does_not_fit_is_refused(tmp_path, word, message):
    save_weights(tmp_path)

    class Wrong(ToySingleTester):
        def eval_step(self, iteration, data_dict, output_dict):
            self.save_result("cloud", {"x": data_dict["x"]}, format=word)

    with pytest.raises(ResultError, match=message):
        Wrong(settings(tmp_path)).run()


def test_a_file_outside_of_a_case_is_refused(tmp_path):
    save_weights(tmp_path)

    class Early(ToySingleTester):
        def test_step(self, iteration, data_dict):
            self.save_result("early", {"x": 1})

    with pytest.raises(ResultError, match="outside of a case: call it in eval_step or after_test_step"):
        Early(settings(tmp_path)).run()
    with pytest.raises(ResultError, match="outside of a test"):
        ToySingleTester(settings(tmp_path)).save_result("early", {"x": 1})


def test_a_folder_of_the_scripts_own_is_not_written_into(tmp_path):
    save_weights(tmp_path)
    own = tmp_path / "results" / "prediction"
    own.mkdir(parents=True)
    (own / "0.npz").write_text("of the script")
    with pytest.raises(FolderInUseError, match="files that no test of the engine has left: rename it"):
        whole(tmp_path)
    assert (own / "0.npz").read_text() == "of the script"


def test_a_full_disk_ends_the_test_and_says_what_to_do_and_the_test_goes_on_later(tmp_path, monkeypatch):
    save_weights(tmp_path)
    written = []

    def full(path, arrays):
        if len(written) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        sample_files.write_npz(path, arrays)

    monkeypatch.setitem(sample_files.FORMATS, "npz", full)
    with pytest.raises(FolderError, match=r"'.*results': No space left on device. Make space, .* --resume"):
        whole(tmp_path)
    assert len(list((tmp_path / "results" / "prediction").iterdir())) == 4
    monkeypatch.setitem(sample_files.FORMATS, "npz", sample_files.write_npz)
    whole(tmp_path, resume=True)
    assert len(list((tmp_path / "results" / "prediction").iterdir())) == 7


# ------------------------------------------------------------------------------------------------ going on


def test_a_stopped_test_goes_on_with_what_is_missing_and_ends_as_if_it_had_not_been(tmp_path):
    save_weights(tmp_path / "a")
    save_weights(tmp_path / "b")
    undisturbed = whole(tmp_path / "a")
    stopped(tmp_path / "b", at=6)
    toy = whole(tmp_path / "b", resume=True)
    assert [call for call in toy.calls if call[0] == "test_step"] == [("test_step", k) for k in (5, 6, 7)]
    assert toy.summary == undisturbed.summary
    for name in ("results.jsonl", "results.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert "test ended: 7 cases" in log_of(toy)


def test_batches_that_are_done_are_not_loaded(tmp_path):
    save_weights(tmp_path)
    loaded = []

    class Counted(Rows):
        def __getitem__(self, index):
            loaded.append(index)
            return super().__getitem__(index)

    gone_on(Saving, tmp_path, build_dataloader(Counted(7), 1, num_workers=0))
    assert loaded == [*range(6), 4, 5, 6]


def test_a_list_of_batches_goes_on_too(tmp_path):
    save_weights(tmp_path)
    batches = [{"x": torch.ones(1, 3).double() * k, "y": torch.zeros(1)} for k in range(7)]
    toy = gone_on(Saving, tmp_path, batches)
    assert [call for call in toy.calls if call[0] == "test_step"] == [("test_step", k) for k in (5, 6, 7)]
    assert [row["name"] for row in rows_of(tmp_path)] == [str(k) for k in range(7)]


def test_a_finished_test_that_goes_on_says_its_summary_once_more(tmp_path):
    save_weights(tmp_path)
    first = whole(tmp_path)
    again = whole(tmp_path, resume=True)
    assert ("test_step", 1) not in again.calls
    assert again.summary == first.summary


def test_batches_that_were_left_out_are_counted_over_all_attempts(tmp_path):
    save_weights(tmp_path)

    class Skipping(Saving):
        def eval_step(self, iteration, data_dict, output_dict):
            return None if iteration in {2, 7} else super().eval_step(iteration, data_dict, output_dict)

    toy = gone_on(Skipping, tmp_path)
    assert toy.summary["skipped"] == 2
    assert [row["values"]["iteration"] for row in rows_of(tmp_path)] == [1, 3, 4, 5, 6]


@pytest.mark.parametrize("changed", ["weights", "seed", "data", "config"])
def test_a_test_of_something_else_is_not_gone_on_with_and_both_values_are_said(tmp_path, changed):
    save_weights(tmp_path)
    stopped(tmp_path, at=5)
    cfg = settings(tmp_path, resume=True) | ({"voxel": 0.1} if changed == "config" else {})
    if changed == "seed":
        cfg["exp"]["seed"] = 7
    if changed == "weights":
        torch.save({"model": torch.nn.Linear(3, 1).double().state_dict()}, tmp_path / "checkpoints" / "weights.pth")
    named = {
        "weights": "checkpoint was 'sha256:.*', is 'sha256:",
        "seed": "exp.seed was 0, is 7",
        "data": "data.samples was 7, is 6",
        "config": "voxel was None, is 0.1",
    }[changed]
    toy = Saving(cfg, rows_loader(6 if changed == "data" else 7, batch_size=1))
    with pytest.raises(
        FolderError, match=f"cannot be gone on with: {named}.* start anew with --overwrite, or keep both with"
    ):
        toy.run()
    assert len(list((tmp_path / "results" / "prediction").iterdir())) == 4


def test_a_finished_test_without_files_is_followed_by_another_one_also_where_the_script_resumes(tmp_path):
    save_weights(tmp_path)
    ToySingleTester(settings(tmp_path)).run()
    toy = ToySingleTester(settings(tmp_path, resume=True), rows_loader(4, batch_size=1))
    toy.run()
    assert len(rows_of(tmp_path)) == 4


def test_files_of_an_earlier_test_are_neither_mixed_with_nor_replaced_without_a_word(tmp_path):
    save_weights(tmp_path)
    whole(tmp_path)
    with pytest.raises(
        FolderInUseError, match=r"\(prediction: 7 files\). Add --resume to go on with it, --overwrite.* --test_name"
    ):
        whole(tmp_path)


def test_overwrite_keeps_the_old_files_until_the_new_test_has_ended(tmp_path):
    save_weights(tmp_path)
    whole(tmp_path)
    results = tmp_path / "results"
    for _ in range(2):
        stopped(tmp_path, at=5, overwrite=True)
        assert len(list((results / ".overwritten" / "prediction").iterdir())) == 7
        assert len(list((results / "prediction").iterdir())) == 4
    whole(tmp_path, resume=True)
    assert not (results / ".overwritten").exists()
    assert len(list((results / "prediction").iterdir())) == 7


class Recording(Saving):
    """Keeps records, may be stopped at its very end, and has them in ``found``."""

    found = ()
    record = staticmethod(lambda iteration: (iteration, {"half": iteration / 2}))

    def eval_step(self, iteration, data_dict, output_dict):
        self.add_records(self.record(iteration) for _ in range(2))
        return None if iteration == 3 else super().eval_step(iteration, data_dict, output_dict)

    def after_test_epoch(self, summary_dict):
        self.found = self.gather_records()
        if self.stops_at == 8:
            raise RuntimeError("stopped")


@pytest.mark.parametrize("at", [2, 6, 8])
def test_records_are_those_of_a_test_that_was_not_stopped_wherever_it_was(tmp_path, at):
    save_weights(tmp_path)
    stop(Recording(settings(tmp_path), rows_loader(7, batch_size=1)), at)
    again = Recording(settings(tmp_path, resume=True), rows_loader(7, batch_size=1))
    again.run()
    assert again.found == [(k, {"half": k / 2}) for k in range(1, 8) for _ in range(2)]


def test_a_test_whose_records_cannot_be_had_again_is_not_gone_on_with(tmp_path):
    save_weights(tmp_path)
    for stops_at in (6, 0):
        toy = Recording(settings(tmp_path, resume=True), rows_loader(7, batch_size=1))
        toy.stops_at, toy.record = stops_at, np.float32
        with pytest.raises(RuntimeError if stops_at else ResultError, match=r"stopped|add_records got .*float32"):
            toy.run()
    assert ("test_step", 6) not in toy.calls


class Counter:
    """A metric of somebody else's, without a state."""

    def __init__(self):
        self.count = 0

    def update(self):
        self.count += 1

    def compute(self):
        return self.count

    def reset(self):
        self.count = 0


class Counting(Saving):
    handles = ()

    def eval_step(self, iteration, data_dict, output_dict):
        for handle in self.handles:
            handle.update()
        return super().eval_step(iteration, data_dict, output_dict)


def counting(folder, *metrics, **trainer):
    toy = Counting(settings(folder, **trainer), rows_loader(7, batch_size=1))
    toy.handles = [toy.register_metric(name, metric) for name, metric in metrics]
    return toy


def test_a_metric_that_cannot_be_saved_is_refused_in_a_test_that_goes_on_and_said_before(tmp_path):
    save_weights(tmp_path)
    toy = stop(counting(tmp_path, ("seen", Counter())), 6)
    assert "a test that is killed cannot be gone on with: give it both" in log_of(toy)
    with pytest.raises(ResultError, match=r"no state_dict and load_state_dict: seen. Give them both, or start anew"):
        counting(tmp_path, ("seen", Counter()), resume=True).run()
    again = counting(tmp_path, ("seen", Counter()), overwrite=True)
    again.run()
    assert again.summary["seen"] == 7


def test_a_metric_that_has_not_seen_what_is_done_is_refused(tmp_path):
    save_weights(tmp_path)
    stop(counting(tmp_path), 6)
    with pytest.raises(FolderError, match=r"cannot be gone on with: metrics.seen was None, is 'Counter'"):
        counting(tmp_path, ("seen", Counter()), resume=True).run()


class InOrder(torch.utils.data.IterableDataset):
    def __len__(self):
        return 7

    def __iter__(self):
        return iter(Rows(7)[index] for index in range(7))


def test_other_workers_that_read_in_order_are_another_test(tmp_path):
    save_weights(tmp_path)
    for workers in (0, 2):
        loader = torch.utils.data.DataLoader(InOrder(), batch_size=1, num_workers=workers)
        toy = Saving(settings(tmp_path, resume=True), loader)
        toy.stops_at = 6
        expected, said = (FolderError, "data.num_workers was 0, is 2") if workers else (RuntimeError, "stopped")
        with pytest.raises(expected, match=said):
            toy.run()


class TwoKinds(Saving):
    def eval_step(self, iteration, data_dict, output_dict):
        self.save_result("another", {"y": output_dict["prediction"]})
        return super().eval_step(iteration, data_dict, output_dict)


def two_kinds(folder, **trainer):
    TwoKinds(settings(folder, **trainer), rows_loader(3, batch_size=1)).run()


@pytest.mark.parametrize("renames", [1, 2])
@pytest.mark.parametrize("then", [{"resume": True}, {"overwrite": True}, {}])
def test_a_kill_while_old_results_are_put_aside_loses_none_of_them(tmp_path, monkeypatch, renames, then):
    save_weights(tmp_path)
    two_kinds(tmp_path)
    results, real, left = tmp_path / "results", Path.rename, [renames]

    def rename(self, target):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            two_kinds(tmp_path, overwrite=True)
    seen = []
    with monkeypatch.context() as patched:
        patched.setattr(Saving, "after_test_epoch", lambda self, summary: seen.append(files_of(results)))
        two_kinds(tmp_path, **then)
    kinds = ("another", "prediction")
    old = {f".overwritten/{kind}/{number}.npz" for kind in kinds for number in range(3)}
    assert seen == [old | {f"{kind}/{number}.npz" for kind in kinds for number in range(3)}]
    assert files_of(results) == seen[0] - old


def files_of(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*.npz")}


def test_results_of_a_test_that_has_ended_are_put_aside_even_where_it_was_killed_before_it_had_cleaned_up(tmp_path):
    save_weights(tmp_path)
    whole(tmp_path)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ResultsFolder, "_remove_replaced", lambda self: None)
        whole(tmp_path, overwrite=True)
    newest = (tmp_path / "results" / "prediction" / "0.npz").stat().st_ino
    stopped(tmp_path, at=5, overwrite=True)
    assert (tmp_path / "results" / ".overwritten" / "prediction" / "0.npz").stat().st_ino == newest


def test_a_test_of_which_files_are_gone_is_not_gone_on_with(tmp_path):
    save_weights(tmp_path)
    stopped(tmp_path, at=6)
    (tmp_path / "results" / "prediction" / "2.npz").unlink()
    with pytest.raises(FolderError, match=r"files of what is done are gone \(prediction/2.npz\). Put them back, or"):
        whole(tmp_path, resume=True)


def test_damaged_lines_are_said_and_their_batches_are_tested_again(tmp_path):
    save_weights(tmp_path)
    stopped(tmp_path, at=6)
    (journal,) = (tmp_path / "results" / ".progress").glob("*.jsonl")
    journal.write_bytes(journal.read_bytes().replace(b'"batch": 2', b'"batch": 9'))
    toy = whole(tmp_path, resume=True)
    assert ("test_step", 3) in toy.calls
    assert len(rows_of(tmp_path)) == 7
    assert "has lost lines of what is done (attempt-0001-rank-0.jsonl): these batches are tested again" in log_of(toy)


def test_a_full_disk_at_the_start_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    save_weights(tmp_path)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(results_folder, "atomic_write", full)
    with pytest.raises(FolderError, match=r"'.*results': No space left on device. Make space, .* --resume"):
        whole(tmp_path)


# ------------------------------------------------------------------------------------------------ odd numbers, names


def value_of(folder, value, weight=1):
    class Valued(ToySingleTester):
        def eval_step(self, iteration, data_dict, output_dict):
            return {"v": value}

        def metric_weight(self, data_dict, output_dict, result_dict):
            return weight

    save_weights(folder)
    Valued(settings(folder)).run()
    return rows_of(folder)[0]["values"]["v"]


def test_a_whole_number_of_a_tensor_keeps_all_its_digits(tmp_path):
    assert value_of(tmp_path, torch.tensor(2**53 + 1)) == 2**53 + 1


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), torch.tensor(-1.0), {"v": -1}])
def test_a_weight_that_is_none_is_refused_naming_the_case(tmp_path, weight):
    with pytest.raises(ResultError, match=r"metric_weight returned .* of the case '0' for .*; expected 0 or a"):
        value_of(tmp_path, 1.0, weight)


@pytest.mark.parametrize("digits", [400, 5000])
def test_a_number_that_no_float_holds_is_refused_in_its_step(tmp_path, digits):
    with pytest.raises(ResultError, match=r"'v' is a number beyond 1.8e308"):
        value_of(tmp_path, 10**digits)


def test_a_name_of_bytes_that_are_no_text_has_a_row_and_a_file(tmp_path):
    save_weights(tmp_path)

    class Named(Saving):
        def sample_name(self, iteration, data_dict):
            return f"scan\udcff{iteration}"

    Named(settings(tmp_path), rows_loader(2, batch_size=1)).run()
    assert [row["name"] for row in rows_of(tmp_path)] == ["scan\\udcff1", "scan\\udcff2"]
    assert len(list((tmp_path / "results" / "prediction").iterdir())) == 2


def test_another_test_in_the_folder_is_refused_while_one_runs(tmp_path):
    save_weights(tmp_path)
    (tmp_path / "results").mkdir()
    with locked_folder(tmp_path / "results"), pytest.raises(FolderInUseError, match="in use by a run of this process"):
        whole(tmp_path)


def test_numbers_are_read_in_blocks_and_nothing_else_waits(tmp_path, monkeypatch):
    save_weights(tmp_path)
    waiting = []
    real = case_block.CaseBlock.read

    def read(self):
        waiting.append(len(self.lines))
        return real(self)

    monkeypatch.setattr(case_block.CaseBlock, "read", read)
    ToySingleTester(settings(tmp_path), rows_loader(60, batch_size=1)).run()
    assert max(waiting) == 2
    assert sum(waiting) == 60
