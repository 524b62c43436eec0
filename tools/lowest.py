"""Print the lowest versions that pyproject.toml declares for running and testing, as pip takes them."""

import tomllib
from pathlib import Path

EXTRAS = ("plots", "data", "view", "dev")


def lowest_versions() -> list[str]:
    """Return ``name==version`` for each dependency of the package, and of the extras that its tests need."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = [*project["dependencies"], *(line for extra in EXTRAS for line in extras[extra])]
    return [line.replace(">=", "==") for line in declared if not line.startswith(project["name"])]


if __name__ == "__main__":
    print(*lowest_versions())
