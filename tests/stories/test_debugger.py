"""A person looks into a run with python's debugger; without a person nothing waits."""

import re
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S
from tests.stories.launching import free_port, start, start_anew
from tests.stories.terminal import Terminal

SCRIPT = Path(__file__).parent / "debugger_script.py"


def test_breakpoint_in_a_hook_stops_in_its_line_with_the_bar_put_away(tmp_path):
    terminal = Terminal(SCRIPT, tmp_path, "hook")
    shown = terminal.read_to(r"\(Pdb\) ")
    assert re.search(r"^> \S+debugger_script.py\(\d+\)before_train_step\(\)", shown.rpartition("\r")[2], re.MULTILINE)
    terminal.type("p treasure + iteration")
    assert "\n45\n" in terminal.read_to(r"\d\n\(Pdb\) ")
    terminal.type("c")
    terminal.read_to(r"\(Pdb\) ")
    terminal.type("c")
    code, seen = terminal.end()
    assert code == 0, seen
    assert "DONE" in seen


def test_without_a_terminal_no_breakpoint_waits_and_it_is_said_once(tmp_path):
    process = start(SCRIPT, tmp_path, "hook")
    output, errors = process.communicate(timeout=PATIENCE_S)
    assert "DONE" in output, errors
    assert errors.count("the debugger is not opened, since standard input is no terminal") == 1


def test_an_error_opens_the_debugger_in_the_users_line_when_it_is_asked_for(tmp_path):
    terminal = Terminal(SCRIPT, tmp_path, "error", "--pdb")
    shown = terminal.read_to(r"\(Pdb\) ")
    assert "ValueError: a bad cloud" in shown
    assert re.search(r"^> \S+debugger_script.py\(\d+\)train_step\(\)", shown, re.MULTILINE)
    terminal.type("p iteration + 100")
    assert "103" in terminal.read_to(r"\d\n\(Pdb\) ")
    terminal.type("q")
    code, seen = terminal.end()
    assert code == 1
    assert seen.rstrip().endswith("ValueError: a bad cloud\nin training epoch 1, iteration 3, samples 2")


def test_an_error_without_a_terminal_opens_nothing_and_says_so(tmp_path):
    process = start(SCRIPT, tmp_path, "error", "--pdb")
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert errors.count("the debugger is not opened, since standard input is no terminal") == 1


def world(*words, **variables):
    """Start two processes, of which the second has a terminal."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", **variables}
    return start_anew(SCRIPT, *words, RANK="0", **address), Terminal(SCRIPT, *words, RANK="1", **address)


def test_a_breakpoint_on_one_process_holds_the_others_past_every_limit(tmp_path):
    limits = '{"collective_timeout_s": 6, "heartbeat_s": 3, "hang_after": "4 s"}'
    main, terminal = world(tmp_path, "rank", LIMITS=limits)
    assert re.search(
        r"^> \S+debugger_script.py\(\d+\)before_train_step\(\)", terminal.read_to(r"\(Pdb\) "), re.MULTILINE
    )
    terminal.type("import time; time.sleep(9)")
    terminal.type("p treasure")
    terminal.read_to(r"42\n\(Pdb\) ")
    terminal.type("c")
    code, seen = terminal.end()
    output, errors = main.communicate(timeout=PATIENCE_S)
    assert (code, main.returncode) == (0, 0), seen + errors
    assert "DONE" in output
    assert "process 1 opens its debugger, and the others wait for it" in errors
    assert "WARNING" not in errors
    assert not list(tmp_path.glob("debug/hang*"))


def test_a_breakpoint_on_a_process_without_a_terminal_holds_nobody(tmp_path):
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    processes = [start(SCRIPT, tmp_path, "rank", RANK=rank, **address) for rank in range(2)]
    outputs = [process.communicate(timeout=PATIENCE_S) for process in processes]
    assert all("DONE" in output for output, _ in outputs), outputs
    assert "standard input is no terminal" in (tmp_path / "logs" / "rank1.log").read_text()


@pytest.mark.slow
def test_an_error_of_one_process_opens_the_debugger_there_and_the_others_end_when_it_is_left(tmp_path):
    main, terminal = world(tmp_path, "error", "--pdb")
    assert "train_step" in terminal.read_to(r"\(Pdb\) ")
    assert main.poll() is None
    terminal.type("q")
    code, seen = terminal.end()
    _, errors = main.communicate(timeout=PATIENCE_S)
    assert (code, main.returncode) == (1, 1), seen + errors
    assert "process 1 on" in errors
    assert "ValueError: a bad cloud" in errors
