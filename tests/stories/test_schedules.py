"""Schedules of real processes: killed around a validation that moves one on, and on two processes with unlike data."""

import json
from pathlib import Path

import pytest
import torch
from torch.optim import lr_scheduler

from tests.stories.launching import outputs_of, results_of, start, start_ranks
from tests.stories.schedule_script import SCORES, Script

SCRIPT = Path(__file__).with_name("schedule_script.py")


def one_cycle(total):
    """Return the rates of torch's object, stepped by hand."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    schedule, rates = lr_scheduler.OneCycleLR(optimizer, 0.2, total), []
    for step in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < total - 1:
            schedule.step()
    return rates


def halved():
    """Return the rates of the epochs by torch's object, and the one after the last."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule, rates = lr_scheduler.ReduceLROnPlateau(optimizer, "max", 0.5, 0), [0.1]
    for score in SCORES:
        schedule.step(score)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


SLOW = ["train 3 2", "val 2 1", "validated 2", "validated 5", "stepped 4", "val 5 5"]


@pytest.mark.parametrize("place", ["stepped 2", *(pytest.param(each, marks=pytest.mark.slow) for each in SLOW)])
def test_a_process_that_is_killed_around_a_validation_goes_on_to_the_same_bits(place, tmp_path):
    straight = Script(str(tmp_path / "straight"))
    straight.run()
    ((code, _, _),) = outputs_of([start(SCRIPT, tmp_path / "killed", place, 0)])
    assert code == -9
    (result,) = results_of([start(SCRIPT, tmp_path / "killed", "", 1)])
    found, expected = json.loads(result), json.loads(straight.result())
    assert found["weights"] == expected["weights"]
    assert found["rates"] == expected["rates"] == [one_cycle(15)[-1], halved()[-1]]
    assert found["used"] == expected["used"][len(expected["used"]) - len(found["used"]) :]


def test_processes_with_unlike_numbers_of_batches_have_the_length_and_the_metric_of_the_run(tmp_path):
    """Of five batches one process has three and the other two, so an epoch has two updates."""
    results = [json.loads(each) for each in results_of(start_ranks(SCRIPT, tmp_path, "", 0))]
    assert results[0]["weights"] == results[1]["weights"]
    updates, epochs = one_cycle(10), halved()
    for result in results:
        assert result["rates"] == [updates[-1], epochs[-1]]
        assert [second for epoch, _, _, second in result["used"]] == [epochs[epoch - 1] for epoch, *_ in result["used"]]
    longest = max((result["used"] for result in results), key=len)
    expected = [updates[2 * epoch + (step > 1)] for epoch in range(5) for step in range(3)]
    assert [first for _, _, first, _ in longest] == expected  # the schedule moves on after the hook that notes the rate
