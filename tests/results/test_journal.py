"""What counts as done when lines of a journal, or their states, are lost."""

import os

import pytest

from vision3d_engine.core import files
from vision3d_engine.results.journal import Journal, Journals


def line(batch, *names):
    return {"batch": batch, "opened": 1, "skipped": 0, "files": list(names), "cases": []}


def journal(folder, lines, state=None, attempt=1):
    made = Journal(folder, attempt, 0)
    for each in lines:
        made.add([each], state)
    made.close()
    return made.path


def changed(path, number, old, new):
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number] = lines[number].replace(old, new)
    path.write_bytes(b"".join(lines))


SPOILT = {
    "a flipped byte": lambda path: changed(path, 2, b"opened", b"opemed"),
    "another number of a batch": lambda path: changed(path, 2, b'"batch": 1', b'"batch": 7'),
    "a line of something else": lambda path: changed(path, 2, path.read_bytes().splitlines()[2], b'{"a": 1}'),
    "a damaged head": lambda path: changed(path, 0, b"has_state", b"has_steak"),
    "a cut end": lambda path: path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3])),
    "a torn end": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "nothing at all": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_neither_a_state_nor_its_lines_count_when_a_line_is_lost_that_it_has_counted(tmp_path, spoil):
    path = journal(tmp_path, map(line, range(4)), b"state")
    journal(tmp_path, [line(4)], b"state", attempt=2)
    spoil(path)
    found = Journals(tmp_path)
    assert found.done() == {4: 1}
    assert [state.name for state in found.states()] == ["attempt-0002-rank-0.1.state"]
    assert found.damaged() == [path]


@pytest.mark.parametrize("name", ["a flipped byte", "another number of a batch", "a line of something else"])
def test_without_a_state_a_damaged_line_alone_is_done_again(tmp_path, name):
    path = journal(tmp_path, map(line, range(4)))
    SPOILT[name](path)
    assert Journals(tmp_path).done() == {0: 1, 2: 1, 3: 1}
    assert Journals(tmp_path).damaged() == [path]


def test_a_torn_last_line_is_no_damage_but_what_a_kill_leaves(tmp_path):
    path = journal(tmp_path, map(line, range(4)))
    SPOILT["a torn end"](path)
    assert Journals(tmp_path).done() == {0: 1, 1: 1, 2: 1}
    assert Journals(tmp_path).damaged() == []


def test_lines_are_on_the_disk_before_the_state_that_covers_them(tmp_path, monkeypatch):
    synced, real = [], os.fsync
    monkeypatch.setattr(files.os, "fsync", lambda handle: (synced.append(os.fstat(handle).st_ino), real(handle)))
    path = journal(tmp_path, [line(0)], b"state")
    (state,) = Journals(tmp_path).states()
    assert synced.index(path.stat().st_ino) < synced.index(state.stat().st_ino)


def test_a_file_that_two_batches_name_is_found_and_one_that_was_done_again_is_none(tmp_path):
    journal(tmp_path, [line(0, "a/x.npz"), line(1, "a/y.npz", "b/y.npz")])
    journal(tmp_path, [line(1, "a/y.npz", "b/y.npz")], attempt=2)
    assert Journals(tmp_path).file_of_two() is None
    journal(tmp_path, [line(2, "a/y.npz")], attempt=3)
    assert Journals(tmp_path).file_of_two() == "a/y.npz"
