"""Which checkpoint files may go: a pure function of their names."""

import re
from collections.abc import Iterable

_EPOCH_FILE = re.compile(r"epoch-(\d+)\.pth")


def epoch_files(names: Iterable[str]) -> list[str]:
    """Return the names of the form ``epoch-N.pth``, each once, oldest first."""
    matches = [match for name in set(names) if (match := _EPOCH_FILE.fullmatch(name))]
    return [match.group(0) for match in sorted(matches, key=lambda match: int(match.group(1)))]


def outdated(names: Iterable[str], keep_latest: int) -> list[str]:
    """Return the epoch files to remove so that the latest n stay; 0 or less keeps all.

    Only ``epoch-N.pth`` is ever returned: best models, ``checkpoint.pth`` and files of others stay.
    """
    return epoch_files(names)[:-keep_latest] if keep_latest > 0 else []


def best_name(metric: str) -> str:
    """Return the file name of the best model by a metric, whose name may hold characters that file names may not."""
    return f"best_{re.sub(r'[^A-Za-z0-9._+=@-]+', '_', metric)}.pth"
