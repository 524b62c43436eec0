"""What pyproject.toml declares as lowest versions can be installed and tried."""

import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def lowest():
    command = [sys.executable, ROOT / "tools" / "lowest.py"]
    return [Requirement(word) for word in subprocess.check_output(command, text=True).split()]


def test_the_lowest_version_of_everything_the_tests_need_is_installed():
    extras = PROJECT["optional-dependencies"]
    declared = {Requirement(line).name for line in PROJECT["dependencies"] + extras["plots"] + extras["dev"]}
    assert declared - {PROJECT["name"]} <= {requirement.name for requirement in lowest()}


def test_each_is_one_version():
    assert all(str(requirement.specifier).startswith("==") for requirement in lowest())


def test_every_dependency_declares_its_lowest_version():
    lines = chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    floors = [line for line in lines if not line.startswith(PROJECT["name"])]
    assert all(str(Requirement(line).specifier).startswith(">=") for line in floors)
