"""Results of several runs side by side, by the command."""

import json
from pathlib import Path

import pytest

from vision3d_engine.commands import main


def run_folder(path, summary, cases=(), test="results"):
    path.mkdir(exist_ok=True)
    (path / f"{test}.json").write_text(json.dumps({"summary": summary}))
    rows = [{"index": i, "name": name, "values": values, **more} for i, (name, values, more) in enumerate(cases)]
    (path / f"{test}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def runs(tmp_path):
    cases = [
        ("kitchen/0", {"RRE": 1.0}, {}),
        ("kitchen/1", {"RRE": 4.0}, {"weights": {"RRE": 2}}),
        ("lab/0", {"RRE": 8.0}, {}),
        ("other", {"RRE": 100.0}, {}),
    ]
    first = run_folder(tmp_path / "first", {"RRE": 2.123456, "IoU/wall": 0.5}, cases)
    second = run_folder(tmp_path / "second", {"RRE": 1.0, "cases": 12, "loss": None}, [("lab/0", {"RRE": 3.0}, {})])
    return [str(first), str(second)]


def lines(capsys):
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_numbers_have_rows_and_runs_have_columns_and_what_is_missing_is_a_dash(runs, capsys):
    main(["table", *runs])
    assert lines(capsys) == [
        ["first", "second"],
        ["RRE", "2.123", "1"],
        ["IoU/wall", "0.5", "-"],
        ["cases", "-", "12"],
        ["loss", "-", "-"],
    ]


def test_a_pattern_gives_a_row_to_each_sequence(runs, capsys):
    main(["table", *runs, "--per", "^(.*)/"])
    assert lines(capsys) == [
        ["RRE", "first", "RRE", "second"],
        ["kitchen", "3", "-"],
        ["lab", "8", "3"],
        ["(all)", "4.25", "3"],
    ]


def test_the_table_is_markdown_where_that_is_asked_for(runs, capsys):
    main(["table", runs[0], "--per", "^(.*)/", "--markdown", "--numbers", "RRE"])
    expected = "|  | RRE |\n| --- | ---: |\n| kitchen | 3 |\n| lab | 8 |\n| (all) | 4.25 |\n"
    assert capsys.readouterr().out == expected


def test_infinity_is_shown_as_such_and_is_a_number_of_groups(tmp_path, capsys):
    run = run_folder(tmp_path / "run", {"loss": "inf"}, [("a/0", {"loss": "inf"}, {}), ("b/0", {"loss": 2.0}, {})])
    main(["table", str(run)])
    assert lines(capsys) == [["run"], ["loss", "inf"]]
    main(["table", str(run), "--per", "^(.*)/"])
    assert lines(capsys)[1:3] == [["a", "inf"], ["b", "2"]]


def test_a_number_of_the_whole_set_has_no_groups_which_is_told(runs):
    with pytest.raises(SystemExit, match=r"'IoU/wall' is a number of the whole set, .* Leave out --per, or .*RRE"):
        main(["table", runs[0], "--per", "^(.*)/", "--numbers", "IoU/wall"])


def test_a_file_in_place_of_a_run_folder_is_told_with_the_folder(runs):
    with pytest.raises(SystemExit, match=r"results.json' is a file: name the run folder, '.*first'"):
        main(["table", f"{runs[0]}/results.json"])


def test_runs_whose_folders_have_one_name_are_told_apart(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        run_folder(tmp_path / name / "outputs", {"x": 1.0})
    main(["table", *(str(tmp_path / name / "outputs") for name in ("a", "b"))])
    assert lines(capsys)[0] == ["a/outputs", "b/outputs"]


@pytest.fixture
def several(runs):
    path = Path(runs[0])
    run_folder(path, {"RRE": 9.0}, [("lab/0", {"RRE": 9.0}, {})], test="results-lomatch")
    (path / "resultsheet.json").write_text("of the script")
    return runs


def test_a_run_shows_all_its_tests_by_their_names(several, capsys):
    main(["table", *several, "--numbers", "RRE"])
    assert lines(capsys) == [["first", "first:lomatch", "second"], ["RRE", "2.123", "9", "1"]]
    main(["table", several[0], "--per", "^(.*)/"])
    assert lines(capsys)[2] == ["lab", "8", "9"]


def test_one_test_of_a_run_is_picked_by_its_name(several, capsys):
    main(["table", f"{several[0]}:lomatch", several[1], "--numbers", "RRE"])
    assert lines(capsys) == [["first:lomatch", "second"], ["RRE", "9", "1"]]
    main(["table", f"{several[0]}:", "--numbers", "RRE"])
    assert lines(capsys) == [["first"], ["RRE", "2.123"]]
    with pytest.raises(SystemExit, match=r"no test 'lomach'; did you mean 'lomatch'\? \(there are: '', 'lomatch'\)"):
        main(["table", f"{several[0]}:lomach"])
    with pytest.raises(SystemExit, match="a test is named twice: first:lomatch; name each once"):
        main(["table", several[0], f"{several[0]}:lomatch"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--numbers", "RRX"], r"no run has the number 'RRX'; did you mean 'RRE'\? \(there are: RRE, IoU/wall\)"),
        (["--per", "^seq"], r"matches no case of .*first' \(they are called kitchen/0, kitchen/1, lab/0, other\)"),
        (["--per", "kitchen"], "no such group. Give a regular expression with a group, as in"),
        (["--per", "("], "missing \\), unterminated subpattern"),
    ],
)
def test_what_cannot_be_shown_is_said(runs, words, message):
    with pytest.raises(SystemExit, match=message):
        main(["table", runs[0], *words])


def test_a_run_without_results_and_one_named_twice_are_said(runs, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match=r"empty' has no results.json: no test has ended there. Run the test"):
        main(["table", str(tmp_path / "empty")])
    with pytest.raises(SystemExit, match="named twice"):
        main(["table", runs[0], runs[0]])
