"""An environment in which nothing is installed but what the engine needs, made of links to what is installed here."""

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent.parent


def make_environment(folder):
    """Return the site-packages of a new environment without extras, and without the engine."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    [site] = folder.glob("lib/python*/site-packages")
    for name in needed():
        distribution = importlib.metadata.distribution(name)
        for top in {path.parts[0] for path in distribution.files} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(distribution.locate_file(top))
    return site


def needed():
    """Return the names of what is installed with the engine when no extra is asked for."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    waiting, found = [Requirement(line) for line in declared], set()
    while waiting:
        requirement = waiting.pop()
        if requirement.name.lower() in found or not applies(requirement):
            continue
        found.add(requirement.name.lower())
        waiting += [Requirement(line) for line in importlib.metadata.requires(requirement.name) or []]
    return found


def applies(requirement):
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})
