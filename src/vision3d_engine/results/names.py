"""What the results of a test are called: a run folder holds those of several tests, each under a name of its own."""

from pathlib import Path

from vision3d_engine.results.sample_files import safe_name

FOLDER, ROWS, TABLE, SUMMARY = "results", "results.jsonl", "results.csv", "results.json"


def named(file: str, test: str) -> str:
    """Return what a file or folder of a test is called: ``results.csv``, ``results-NAME.csv`` where it has a name."""
    return f"{FOLDER}-{safe_name(test)}{file.removeprefix(FOLDER)}" if test else file


def tests_in(run: Path) -> list[str]:
    """Return the names of the tests that have ended in a run folder, first the one without a name, ``""``."""
    stems = {path.stem.removeprefix(FOLDER) for path in run.glob("results*.json")}
    return sorted(stem.removeprefix("-") for stem in stems if stem[:1] in {"", "-"})
