"""Stacks of child processes: asked only of those that keep a file of their own, in a folder of this process alone."""

import multiprocessing
import subprocess
import sys
import tempfile
import time

import pytest

from tests.patience import eventually
from vision3d_engine.core.child_stacks import asking_children, note_sample, stacks_of_children
from vision3d_engine.core.children import running_children, starting_children


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def sleep():
    time.sleep(600)


def note_and_sleep():
    note_sample("sample 7")
    sleep()


@pytest.fixture(params=["fork", "spawn"])
def started(request):
    """Return what starts a child."""
    children = []

    def start(target):
        with starting_children():
            child = multiprocessing.get_context(request.param).Process(target=target, daemon=True)
            child.start()
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        child.join()


def noted(folder):
    """Return the files of the children that have noted a sample, once there is one."""
    eventually(lambda: any(file.stat().st_size for file in folder.iterdir()))
    return [file for file in folder.iterdir() if file.stat().st_size]


def assert_lives(child):
    child.join(0.3)
    assert child in running_children()


def test_a_child_tells_its_sample_and_its_stack_and_lives(tmp_path, started):
    with asking_children():
        child = started(note_and_sleep)
        (folder,) = tmp_path.iterdir()
        noted(folder)
        (told,) = stacks_of_children()
        assert "sample 7" in told
        assert "in note_and_sleep" in told
        assert_lives(child)
    assert not list(tmp_path.iterdir())


def test_a_file_that_an_earlier_child_of_the_same_number_has_left_gets_no_child_killed(tmp_path, started):
    with asking_children():
        former, child = started(note_and_sleep), started(sleep)
        (folder,) = tmp_path.iterdir()
        (left,) = noted(folder)
        left.rename(folder / left.name.replace(str(former.pid), str(child.pid)))
        assert list(stacks_of_children()) == []
        assert_lives(child)


def test_a_folder_that_was_there_before_is_neither_used_nor_removed(tmp_path, started):
    with asking_children():
        (folder,) = tmp_path.iterdir()
    folder.mkdir()
    with asking_children():
        child = started(note_and_sleep)
        for name in (f"{child.pid}", f"{child.name}-{child.pid}"):
            (folder / name).write_bytes(b"sample 3".ljust(199) + b"\nan old stack")
        assert list(stacks_of_children()) == []
        assert_lives(child)
    assert folder.exists()


def test_a_run_within_a_run_asks_in_the_folder_of_the_outer_one(tmp_path, started):
    with asking_children():
        with asking_children():
            started(note_and_sleep)
            (folder,) = tmp_path.iterdir()
            noted(folder)
        assert len(list(stacks_of_children())) == 1


def run(script):
    """Run a script that has its folder, and return what it prints."""
    lines = "import os, tempfile\nfrom vision3d_engine.core import child_stacks, children\n"
    lines += f"with child_stacks.asking_children():\n    {script}"
    return subprocess.run([sys.executable, "-c", lines], check=False, capture_output=True, text=True).stdout


def test_no_other_process_can_have_used_the_name_of_the_folder():
    script = "print(os.listdir(tempfile.gettempdir())[0].replace(str(os.getpid()), 'pid'))"
    first, second = run(script), run(script)
    assert "pid" in first
    assert first != second


def test_a_process_that_is_ended_while_it_hangs_leaves_no_folder(tmp_path):
    said = run("print(len(os.listdir(tempfile.gettempdir()))); children.end_process()")
    assert said == "1\n"
    assert not list(tmp_path.iterdir())
