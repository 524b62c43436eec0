"""Real processes of a test that are told to stop: they keep what is done, exit with the right code, and go on."""

import re
import signal
from pathlib import Path

import pytest
import torch

from tests.patience import skip_if_ignored
from tests.stories.launching import outputs_of, start, start_ranks

SCRIPT = Path(__file__).with_name("stopped_test_script.py")
ROOT = Path(__file__).parents[2]
PATHS = {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}


@pytest.fixture
def folder(tmp_path):
    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path / "weights.pth")
    return tmp_path / "run"


def stopped(processes, number):
    """Send a signal to each once it has its third case; return exit code, output and errors of each."""
    for process in processes:
        assert any(line.split() == ["CASE", "3"] for line in process.stdout)
    for process in processes:
        process.send_signal(number)
    return outputs_of(processes)


def done_by(text):
    return int(re.search(r"stopped; (\d+) cases .*are done\. Go on with --resume", text).group(1))


def assert_ended(folder, done):
    ((code, output, errors),) = outputs_of([start(SCRIPT, folder, 0, "--resume", **PATHS)])
    assert code == 0, errors
    assert output.count("CASE") == 30 - done
    scores = [float(line.split(",")[2]) for line in (folder / "results.csv").read_text().splitlines()[1:]]
    assert scores == list(range(30))


@pytest.mark.parametrize(
    ("number", "code", "workers"), [(signal.SIGINT, 130, 0), (signal.SIGTERM, 143, 2)], ids=["Ctrl-C", "SIGTERM"]
)
def test_a_test_that_is_told_to_stop_ends_behind_the_batch_in_one_line_and_goes_on(folder, number, code, workers):
    skip_if_ignored(number)
    ((found, output, errors),) = stopped([start(SCRIPT, folder, workers, **PATHS)], number)
    text = output + errors
    assert found == code, text
    assert f"{number.name}: stopped; " in text
    assert "Traceback" not in text
    assert 3 <= done_by(text) < 30
    assert_ended(folder, done_by(text))


def test_a_test_on_two_processes_that_are_told_to_stop_keeps_what_each_has_done(folder):
    found = stopped(start_ranks(SCRIPT, folder, 0, size=2, **PATHS), signal.SIGTERM)
    assert [code for code, _, _ in found] == [143, 143], found
    assert not any("Traceback" in output + errors for _, output, errors in found)
    left = sum(output.count("CASE") for _, output, _ in found)
    assert "of this process are done" in found[0][1] + found[0][2]
    assert_ended(folder, left + 2 * 3)
