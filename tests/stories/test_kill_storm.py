"""SIGKILL at random moments: in steps, validations and saves, between rename and sync. The end has the same bits."""

from pathlib import Path

import pytest

from tests.stories.forking import run_forked

STORM = Path(__file__).parent.parent.parent / "benchmarks" / "kill_storm.py"


@pytest.mark.parametrize("kills", [3, pytest.param(12, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["epoch", "iter"])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(kind, kills):
    done = run_forked([STORM, "--kills", kills, "--kind", kind, "--seed", "1"])
    assert done.returncode == 0, done.stderr
    assert f"{kind}: {kills} kills" in done.stdout
    assert "all ended with the same bits" in done.stdout
