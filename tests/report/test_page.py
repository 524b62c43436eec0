"""The report on a run, by the command: what is on the page, whatever the run has left."""

import json
import re

import pytest

from tests.seen_runs import Page, PairTester, run_pairs, write_lines
from tests.toys import ToyEpochTrainer, settings
from vision3d_engine.commands import main
from vision3d_engine.loop import case_block


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A run that was tested: five cases, of which the worst are room/4 and room/3."""
    return run_pairs(tmp_path_factory.mktemp("runs") / "pairs")


def report(folder, *words):
    main(["report", str(folder), *words])
    return Page((folder / "report.html").read_text())


def metrics(folder, *rows):
    write_lines(folder / "metrics.jsonl", rows)
    return folder


def said(page, tag):
    return "".join(page.texts[tag])


def test_the_page_of_a_training_has_its_curves_settings_environment_and_end(tmp_path):
    trainer = ToyEpochTrainer(settings(tmp_path / "run", max_epoch=2, log_steps=1))
    trainer.run()
    page = report(tmp_path / "run")
    assert page.texts["title"][0] == "run: report"
    assert {"loss", "mae", "lr"} <= set(page.texts["b"])
    assert {"train", "val", "train, mean of epoch"} <= set(page.texts["figcaption"])
    chosen = dict(page.rows["chosen"])
    assert (chosen["trainer.max_epoch"], chosen["trainer.log_steps"]) == ("2", "1")
    assert "trainer.grad_acc_steps" not in chosen
    assert ["trainer.grad_acc_steps", "1"] in page.rows["settings"]
    assert "packages.torch" in dict(page.rows["environment"])
    assert "run ended: epoch 2/2" in said(page, "pre")
    assert "no test has ended here" in said(page, "p")


def test_the_page_of_a_test_has_means_and_quartiles_and_the_worst_cases_as_pictures(pairs):
    page = report(pairs)
    head, time, error = page.rows["numbers"][0], *sorted(page.rows["numbers"][1:], reverse=True)
    assert head == ["", "cases", "mean", "median", "lower quartile", "upper quartile"]
    assert (time, error) == (["time", "5", "1.5", "1.5", "1.5", "1.5"], ["RTE", "5", "2", "2", "1", "3"])
    assert "Worst cases: largest RTE first" in page.texts["h2"]
    assert page.texts["h4"] == [text for i in (4, 3, 2, 1, 0) for text in (f"room/{i}", f"RTE: {i}")]
    assert page.attributes("img", "alt")[:4] == [
        f"{title} of room/4" for title in ("source and target", "truth", "estimated", "correspondences")
    ]
    assert "test ended: 5 cases" in said(page, "pre")


def test_cases_are_sorted_by_what_the_command_says(pairs):
    assert report(pairs, "--worst", "smallest", "--cases", "2").texts["h4"] == ["room/0", "RTE: 0", "room/1", "RTE: 1"]
    with pytest.raises(SystemExit, match=r"--by names 'RTX', which no case has; did you mean 'RTE'\?"):
        report(pairs, "--by", "RTX")


def test_the_page_needs_no_other_file_and_no_network(pairs):
    page = report(pairs)
    assert all(address.startswith("data:image/png;base64,") for address in page.attributes("img", "src"))
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
    text = (pairs / "report.html").read_text()
    assert re.findall(r"https?:|url\(|@import", text) == []
    assert "default-src 'none'" in page.attributes("meta", "content")[1]


def test_whatever_a_run_is_called_and_says_is_text_on_the_page(tmp_path):
    evil = "<script>alert('1')</script>&amp;"
    row = {"phase": evil, "step": 1, "values": {evil: 1.0, f"a/{evil}/c": 2}}
    folder = metrics(tmp_path / "run", row)
    (folder / "config.yaml").write_text(json.dumps({"exp": {"name": evil}, evil: {evil: evil}}))
    (folder / "env.json").write_text(json.dumps({evil: evil}))
    write_lines(folder / "results.jsonl", [{"index": 0, "name": evil, "values": {evil: 1.0}}])
    (folder / "results.json").write_text(json.dumps({"checkpoint": evil, "summary": {evil: evil}, "worst_by": None}))
    (folder / "logs").mkdir()
    (folder / "logs" / "train.log").write_text(f"2026-01-01 00:00:00 | WARNING | {evil}\n")
    page = report(folder, "--by", evil)
    assert not [tag for tag, _ in page.elements if tag == "script"]
    for tag in ("h1", "h2", "h4", "pre", "code", "figcaption", "td", "th"):
        assert evil in said(page, tag), tag


@pytest.mark.parametrize("what", ["config.yaml", "env.json", "metrics.jsonl", "results.json", "results.jsonl"])
def test_a_file_that_is_cut_off_or_holds_something_else_costs_what_it_says_only(pairs, what):
    kept = (pairs / what).read_bytes() if (pairs / what).exists() else b'{"phase": "train"'
    for text in (kept[: len(kept) // 2], b"\xff\x00", b"[1]\n3\n", b""):
        (pairs / what).write_bytes(text)
        assert "Settings" in report(pairs, "--cases", "1").texts["h2"]
    (pairs / what).write_bytes(kept)


def test_numbers_that_are_not_finite_have_a_page(tmp_path):
    values = {"loss": None, "big": 1e308, "huge": 10**400, "text": "a", "right": True}
    rows = [{"phase": "train", "step": step, "lr": 0.1, "values": values} for step in range(3)]
    page = report(metrics(tmp_path / "run", *rows, {"phase": "train", "step": 3, "values": {"loss": 1.0}}))
    assert said(page, "p").count("no finite number") == 2
    assert page.attributes("path", "d")


def test_a_hundred_thousand_rows_are_thinned(tmp_path):
    rows = [{"phase": "train", "step": step, "values": {"loss": (step * 7919) % 1000}} for step in range(100_000)]
    page = report(metrics(tmp_path / "run", *rows))
    assert len(page.attributes("path", "d")[0].split()) <= 2 * 460
    assert (tmp_path / "run" / "report.html").stat().st_size < 50_000


def test_a_test_that_was_stopped_has_a_page_with_what_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(case_block, "_CASES", 1)
    tester = PairTester(tmp_path / "run")
    tester.after_test_step = lambda iteration, *_: 1 / (iteration != 3)
    with pytest.raises(ZeroDivisionError):
        tester.run()
    page = report(tmp_path / "run", "--by", "RTE")
    assert "The test has not ended: 2 cases are done." in said(page, "p")
    assert page.texts["h4"] == ["room/1", "RTE: 1", "room/0", "RTE: 0"]
    assert page.attributes("img", "alt")


def test_a_file_of_a_case_that_is_damaged_costs_its_pictures_alone(tmp_path):
    folder = run_pairs(tmp_path / "run")
    (folder / "results" / "pair" / "room_4.npz").write_bytes(b"PK damaged")
    page = report(folder)
    assert "room_4.npz' cannot be read" in said(page, "p")
    assert len(page.attributes("img", "src")) == 4 * 4


def test_warnings_and_errors_of_all_logs_are_on_the_page_in_order(tmp_path):
    folder = metrics(tmp_path / "run")
    (folder / "logs").mkdir()
    (folder / "logs" / "b.log").write_text(
        "2026-01-02 00:00:00 | INFO | fine\n2026-01-03 00:00:00 | ERROR | bad\n    is 1\n"
    )
    (folder / "logs" / "a.log").write_text(
        "2026-01-02 00:00:00 | WARNING | odd\n2026-01-02 00:00:01 | SUCCESS | saved\n"
    )
    assert report(folder).texts["pre"] == ["odd", "bad\n    is 1", "neither a run nor a test has ended here yet"]


def test_without_files_of_cases_it_is_said_how_to_get_pictures(tmp_path):
    folder = metrics(tmp_path / "run")
    write_lines(folder / "results.jsonl", [{"index": 0, "name": "a", "values": {"loss": None}}])
    assert "save_result" in said(report(folder), "p")


def test_a_folder_that_is_no_run_is_refused_and_a_target_can_be_named(tmp_path, pairs):
    with pytest.raises(SystemExit, match="is no run: it has none of"):
        main(["report", str(tmp_path)])
    main(["report", str(pairs), "--output", str(tmp_path / "page.html")])
    assert Page((tmp_path / "page.html").read_text()).texts["h1"] == ["pairs"]
    with pytest.raises(SystemExit, match="cannot write"):
        main(["report", str(pairs), "--output", str(tmp_path / "missing" / "page.html")])
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_one_of_several_tests_of_a_run_is_chosen_by_its_name(tmp_path):
    folder = run_pairs(run_pairs(tmp_path / "run"), name="night")
    assert "Other tests of this run, as in report RUN:NAME: 'night'." in report(folder).texts["p"]
    (folder / "results" / "pair" / "room_4.npz").unlink()
    main(["report", f"{folder}:night"])
    page = Page((folder / "report-night.html").read_text())
    assert "Test night" in page.texts["h2"]
    assert len(page.attributes("img", "src")) == 5 * 4
    with pytest.raises(SystemExit, match=r"has no test 'nigth'; did you mean 'night'\?"):
        main(["report", f"{folder}:nigth"])


class Painter(PairTester):
    def eval_step(self, iteration, data_dict, output_dict):
        for kind in ("prediction", "truth"):
            self.save_result(kind, {"points": data_dict["source"], "colors": data_dict["source"]}, format="ply")
        return {"RTE": 0.0}


def test_files_with_entries_of_one_name_are_pictures_beside_each_other(tmp_path):
    Painter(tmp_path / "run").run()
    titles = report(tmp_path / "run", "--cases", "1").attributes("img", "alt")
    assert titles == ["prediction of room/0", "truth of room/0"]
