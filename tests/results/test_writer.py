"""Jobs behind a test are done in order, and wait in a bounded amount of memory."""

import errno

import pytest

from vision3d_engine.core.errors import FolderError
from vision3d_engine.results import writer as module
from vision3d_engine.results.writer import OrderedWriter


def test_jobs_are_done_in_the_order_in_which_they_are_handed_in(tmp_path):
    writer, done = OrderedWriter(tmp_path), []
    for number in range(50):
        writer.put(lambda number=number: done.append(number))
    writer.flush()
    assert done == list(range(50))


def test_what_waits_for_the_disk_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MOST_WAITING", 1000)
    writer, handed, most = OrderedWriter(tmp_path), [], []
    for number in range(100):
        handed.append(number)
        writer.put(lambda: most.append(len(handed)) or handed.clear(), size=300)
    writer.flush()
    assert max(most) <= 4


def test_nothing_is_done_after_a_job_that_fails_so_that_no_line_stands_for_a_missing_file(tmp_path):
    writer, done = OrderedWriter(tmp_path), []

    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    writer.put(full)
    writer.put(lambda: done.append("line"))
    for act in (writer.flush, lambda: writer.put(lambda: None)):
        with pytest.raises(FolderError, match=r"No space left on device. Make space, .*go on with --resume"):
            act()
    assert done == []
    writer.close()


def test_an_error_of_another_kind_is_raised_as_it_is(tmp_path):
    writer = OrderedWriter(tmp_path)
    writer.put(lambda: {}["x"])
    with pytest.raises(KeyError):
        writer.flush()
