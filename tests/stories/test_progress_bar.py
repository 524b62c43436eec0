"""What a person sees who watches a run on a terminal; and that the run is the same whether anybody does."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import torch

from tests.stories.bar_script import run
from tests.stories.launching import free_port

SCRIPT = Path(__file__).parent / "bar_script.py"
ROOT = Path(__file__).parent.parent.parent
COLUMNS = 150
LINE = re.compile(r"\x1b\[32m\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\x1b\[0m \| .*\x1b\[0m")


def start(folder, *cases, stderr, **variables):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, str(SCRIPT), str(folder), *cases]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=stderr)


def watched(folder, *cases, **variables):
    """Run cases with a terminal as standard error; return what is seen of each."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    process = start(folder, *cases, stderr=slave, **variables)
    os.close(slave)
    seen = b""
    while chunk := read(master):
        seen += chunk
    os.close(master)
    assert process.wait() == 0, seen.decode()
    return dict(part.split("\n", 1) for part in seen.decode().replace("\r\n", "\n").split("=== ")[1:])


def read(master):
    try:
        return os.read(master, 65536)
    except OSError:  # nobody holds the other end any more
        return b""


def bars_of(seen):
    """Return what a bar has shown, painting by painting."""
    return [text for text in re.split(r"[\r\n]", seen) if "%|" in text]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("watched")


@pytest.fixture(scope="module")
def seen(folder):
    """What is seen of each case."""
    return watched(folder, "train", "off", "fails", "test")


def test_a_terminal_shows_how_far_the_training_is_with_its_rate_and_the_means_of_the_latest_line(seen):
    bars = bars_of(seen["train"])
    assert any(re.search(r"epoch 1/2: .*/40 \[.*it.*loss: \d", bar) for bar in bars)
    assert any(bar.startswith("epoch 2/2:") for bar in bars)
    assert any(bar.startswith("val:") for bar in bars)
    assert all(len(bar) <= COLUMNS for bar in bars)


def test_log_lines_and_the_bar_do_not_tear_each_other(seen):
    lines = [line.rsplit("\r", 1)[-1] for line in seen["train"].split("\n")]
    said = [line for line in lines if "iter: " in line]
    assert len(said) == 8
    assert [line for line in said if not LINE.fullmatch(line)] == []


def test_bars_can_be_turned_off_and_the_run_has_the_same_bits(seen, folder):
    assert bars_of(seen["off"]) == []
    files = [folder / case / "checkpoints" / "checkpoint.pth" for case in ("train", "off")]
    own, other = (torch.load(file, weights_only=True) for file in files)
    assert all(torch.equal(own["model"][name], other["model"][name]) for name in own["model"])
    assert own["progress"] == other["progress"]


def test_an_exception_leaves_no_bar_behind(seen):
    before, after = seen["fails"].split("Traceback", 1)
    assert bars_of(before)
    assert bars_of(after) == []


def test_a_tester_shows_the_scripts_words_about_the_latest_case(seen):
    assert any(re.search(r"test: .*case \d+ has \d\.\d\d\]", bar) for bar in bars_of(seen["test"]))


@pytest.mark.parametrize("case", ["train", "test"])
def test_nothing_is_painted_where_there_is_no_terminal(capfd, tmp_path, case):
    run(tmp_path, case)
    written = capfd.readouterr()
    assert "iter: 10/40" in written.err
    assert bars_of(written.err + written.out) == []


@pytest.mark.slow
def test_of_several_processes_the_main_one_alone_shows_a_bar(tmp_path):
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    main = start(tmp_path, "train", stderr=subprocess.DEVNULL, RANK="0", **address)
    assert bars_of(watched(tmp_path, "train", RANK="1", **address)["train"]) == []
    assert main.wait() == 0
