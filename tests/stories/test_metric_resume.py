"""Registered metrics of runs that are killed, and resumed on as many processes or on others."""

import json
import os
from pathlib import Path

import pytest

from tests.stories.launching import outputs_of, results_of, start, start_ranks

SCRIPT = Path(__file__).with_name("metric_resume_script.py")
PATH = os.pathsep.join([str(Path(__file__).parent.parent.parent), os.environ.get("PYTHONPATH", "")])


def started(size, *words):
    if size == 1:
        return [start(SCRIPT, *words, PYTHONPATH=PATH)]
    return start_ranks(SCRIPT, *words, size=size, PYTHONPATH=PATH)


def found(size, *words):
    """Return what the processes have found, which is the same on all."""
    texts = {text.removeprefix("RESULT ") for text in results_of(started(size, *words))}
    assert len(texts) == 1
    return json.loads(texts.pop())


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    return found(1, tmp_path_factory.mktemp("straight"))


def check(resumed, whole):
    """Numbers of counts are the same digits; a list is put together in another order, in float32."""
    score, exact = resumed.pop("ap"), whole["ap"]
    assert score == pytest.approx(exact, rel=1e-6)
    assert resumed.pop("loss") == pytest.approx(whole["loss"])
    assert resumed == {key: number for key, number in whole.items() if key.startswith("seg/")}


@pytest.mark.parametrize(
    ("place", "before", "after"),
    [
        ("train.4", 2, 1),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("train.4", 1, 2), ("train.4", 2, 2), ("train.3", 1, 1), ("val.2", 1, 1), ("val.2", 2, 2))
        ),
    ],
)
def test_a_run_that_is_killed_ends_with_the_digits_of_one_that_was_not(place, before, after, straight, tmp_path):
    killed = outputs_of(started(before, tmp_path, "--at", place))
    assert 0 not in {code for code, _, _ in killed}
    assert "RESULT" not in "".join(output for _, output, _ in killed)
    resumed = found(after, tmp_path, "--resume")
    for phase in ("train", "val"):
        assert resumed[phase].keys() == {"2"}
        check(resumed[phase]["2"], straight[phase]["2"])
