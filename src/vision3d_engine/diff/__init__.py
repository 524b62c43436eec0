"""``vision3d-engine diff``: how two runs differ, from what runs record anyway."""

from pathlib import Path

from vision3d_engine.diff.findings import Findings
from vision3d_engine.diff.text import text_of


def diff(a: Path, b: Path, everything: bool = False) -> tuple[str, bool]:
    """Say how two runs differ.

    Args:
        a: the folder of a run, which may still be under way.
        b: that of another one.
        everything: name every row that differs, also of what changes no number.

    Returns:
        The text, and whether all numbers that both have recorded are the same to the bit, and there are some.

    Raises:
        FolderError: for a folder in which no run has worked.
    """
    found = Findings.of(a, b)
    return text_of(found, everything), found.are_same
