"""Loader settings that cost dearly, noticed from what was measured, and said once a run."""

from collections.abc import Callable
from typing import Any

_SLOW_SHARE = 0.2
SLOW_S = 0.005
_SLOW_START_S = 0.5
_SLOW_START_SHARE = 0.05


def loading_hint(loader: Any, data_s: float, model_s: float) -> str | None:
    """Return what would make loading faster, if steps wait for it, else None.

    Args:
        loader: the loader that is read.
        data_s: mean wait for a batch.
        model_s: mean time of a step without it.
    """
    share = data_s / max(data_s + model_s, 1e-9)
    if data_s < SLOW_S or share < _SLOW_SHARE or not hasattr(loader, "num_workers"):
        return None
    waited = f"{share:.0%} of the time is spent waiting for data ({data_s:.3f}s a batch)"
    if loader.num_workers == 0:
        return f"{waited}, which is loaded in the training process: set num_workers to 2 or more"
    return f"{waited} with {loader.num_workers} workers: raise num_workers, or make Dataset.__getitem__ faster"


def startup_hint(loader: Any, first_s: float, epoch_s: float) -> str | None:
    """Return what would make epochs begin sooner, if starting their workers takes a share of them, else None.

    Args:
        loader: the loader that is read.
        first_s: wait for the first batch of the epoch.
        epoch_s: time of the whole epoch.
    """
    restarts = getattr(loader, "num_workers", 0) > 0 and not getattr(loader, "persistent_workers", True)
    if not restarts or first_s < max(_SLOW_START_S, _SLOW_START_SHARE * epoch_s):
        return None
    return (
        f"the first batch of the epoch came after {first_s:.1f}s of {epoch_s:.1f}s, since the {loader.num_workers} "
        "data workers are started for each epoch: pass persistent_workers=True to the loader"
    )


class LoaderHints:
    """Says one hint a run.

    Args:
        say: takes the message.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._has_said = False

    def tell(self, hint: str | None) -> None:
        """Say a hint, if it is one and the first."""
        if hint is not None and not self._has_said:
            self._has_said = True
            self._say(hint)
