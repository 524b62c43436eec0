"""The engine where nothing is installed but its dependencies, as a first user has it."""

import os
import subprocess
import sys

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

from tests.stories.bare_environment import ROOT, make_environment

DEMO = ("demo", "--num-train", "40", "--num-val", "20", "--num-points", "64", "--max-epoch", "2", "--batch-size", "10")
ALL_HELP = """
from vision3d_engine.commands import _COMMANDS, main
for words in ([], *([command] for command in _COMMANDS)):
    try:
        main([*words, "--help"])
    except SystemExit as ended:
        assert ended.code == 0, words
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Return the python of an environment that imports the engine from its sources."""
    folder = tmp_path_factory.mktemp("bare")
    (make_environment(folder) / "vision3d_engine").symlink_to(ROOT / "src" / "vision3d_engine")
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Return the command of an environment into which the wheel was installed."""
    folder = tmp_path_factory.mktemp("installed")
    make_environment(folder)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-index", "--no-deps"]
    wheels = folder / "wheels"
    subprocess.run([*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", wheels, ROOT], check=True)
    python = folder / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", *offline, *wheels.glob("*.whl")], check=True)
    return folder / "bin" / "vision3d-engine"


def call(folder, *words):
    """Return what a program says in a folder; it must end well."""
    done = run(folder, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run(folder, *words):
    """Run a program that finds only what its environment holds."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def write_trainer_of_readme(folder):
    """Write the README's example as a script."""
    [example] = Sybil(parsers=[PythonCodeBlockParser()]).parse(ROOT / "README.md").examples()
    (folder / "train.py").write_text(str(example.parsed))


def test_the_environment_has_no_extras(tmp_path, bare):
    assert "No module named 'matplotlib'" in run(tmp_path, bare, "-c", "import matplotlib").stderr


def test_the_trainer_of_the_readme_runs(tmp_path, bare):
    write_trainer_of_readme(tmp_path)
    call(tmp_path, bare, "train.py")
    assert (tmp_path / "outputs" / "checkpoints" / "checkpoint.pth").exists()


def test_every_subcommand_has_its_help(tmp_path, bare):
    helps = call(tmp_path, bare, "-c", ALL_HELP)
    for command in ("consolidate", "demo", "export", "inspect", "verify-resume"):
        assert f"usage: vision3d-engine {command}" in helps


def test_the_demo_without_matplotlib_says_in_one_line_how_to_get_a_picture(tmp_path, bare):
    said = call(tmp_path, bare, "-m", "vision3d_engine", *DEMO)
    lines = [line for line in said.splitlines() if "picture" in line]
    assert lines == ["no picture: it needs matplotlib; pip install 'vision3d-engine[plots]'"]
    assert "of the validation clouds are classified rightly" in said


@pytest.mark.slow
def test_the_wheel_runs_the_readme_and_every_subcommand(tmp_path, installed):
    write_trainer_of_readme(tmp_path)
    call(tmp_path, installed.with_name("python"), "train.py")
    checkpoint = "outputs/checkpoints/checkpoint.pth"
    assert "epoch" in call(tmp_path, installed, "inspect", checkpoint)
    call(tmp_path, installed, "export", checkpoint, "model.safetensors")
    call(tmp_path, installed, "consolidate", checkpoint, "out.pth")
    call(tmp_path, installed, "verify-resume", "train.py", "--steps", "4")
    call(tmp_path, installed, *DEMO)
    assert (tmp_path / "model.safetensors").exists()
    assert (tmp_path / "out.pth").exists()
