"""What the command ``vision3d-engine replay`` says of a command line that names no step."""

import pytest

from vision3d_engine.commands import main


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train.py"
    path.touch()
    return str(path)


@pytest.mark.parametrize("step", [[], ["--step", "3"]])
def test_a_file_with_a_step_needs_a_script(step):
    with pytest.raises(SystemExit, match=r"'step-000004\.pt': a file with a step needs --script SCRIPT"):
        main(["replay", "step-000004.pt", *step])


@pytest.mark.parametrize("option", [["--step", "3"], ["--epoch", "1"], ["--rank", "1"], ["--processes", "1"]])
def test_a_file_with_a_step_takes_no_other_step_and_no_share_of_a_process(script, option):
    with pytest.raises(SystemExit, match=f"got {option[0]} beside 'step-000004.pt', which holds one step of one proc"):
        main(["replay", "step-000004.pt", "--script", script, *option])


def test_a_script_and_a_file_that_do_not_exist_are_said_in_a_line(tmp_path, script):
    for words in (["gone.py", "--step", "3"], [script, "--script", "gone.py"], ["gone.pt", "--script", script]):
        with pytest.raises(SystemExit, match=r"^error: replay got 'gone\.\w+', which does not exist"):
            main(["replay", *words])


def test_arguments_of_the_script_without_their_dashes_are_told_where_they_go(script, capsys):
    with pytest.raises(SystemExit):
        main(["replay", script, "--step", "3", "--my_flag", "2"])
    said = (
        "error: the script's own arguments go behind --, as in vision3d-engine replay train.py --step 3 -- --my_flag 3"
    )
    assert capsys.readouterr().err.endswith(f"{said}\n")
