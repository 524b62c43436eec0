"""The command that a person is told to replay a step with."""

import pytest

from vision3d_engine.core.cli import Arguments, add_argument
from vision3d_engine.core.replay_command import replay_command


@pytest.mark.parametrize(
    "given",
    [
        "--debug",
        "--debug True",
        "--debug=True",
        "--no-pdb",
        "--profile 3:5",
        "--profile=3:5",
        "--overwrite --pdb false",
    ],
)
def test_the_command_of_a_replay_has_no_flags_that_a_replay_sets_itself(argv, given):
    argv(*given.split(), "--width", "3", "--resume", "False", *given.split())
    Arguments()
    assert replay_command(4) == "vision3d-engine replay train.py --step 4 -- --width 3 --resume False"


def test_flags_of_a_replay_that_the_script_has_taken_over_stay_in_its_command(argv):
    argv("--debug", "7")
    add_argument("--debug", type=int)
    assert Arguments().namespace.debug == 7
    assert replay_command(4) == "vision3d-engine replay train.py --step 4 -- --debug 7"
