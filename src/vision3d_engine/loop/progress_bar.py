"""A bar that shows on a terminal or in a notebook how far a pass is."""

from collections.abc import Iterable, Mapping
from typing import Any

from tqdm.auto import tqdm

from vision3d_engine.logs.log_line import get_format_strings

_EVERY_S = 0.2
# A notebook is shown bars always; elsewhere (None) tqdm looks whether there is a terminal.
_IS_HIDDEN = False if any("notebook" in kind.__module__ for kind in tqdm.__mro__) else None


class _Bar(tqdm):
    """tqdm's bar, without the thread that would paint over a debugger's prompt."""

    monitor_interval = 0


class ProgressBar:
    """Shows how far one pass is; where nobody looks it costs nothing.

    Nothing is read from the device: what stands behind the bar is handed in, at log lines.

    Args:
        title: what stands before the bar.
        is_wanted: False on all processes but the main one, and when bars are turned off.
    """

    def __init__(self, title: str, is_wanted: bool) -> None:
        self._title, self._is_wanted = title, is_wanted
        self._bar: Any = None

    def over(self, batches: Iterable[Any], total: int | None, done: int) -> Iterable[Any]:
        """Return the batches, whose number moves the bar if standard error is a terminal or a notebook.

        Args:
            batches: what is left of the pass.
            total: batches of the whole pass, None when not known.
            done: batches that are behind it already.
        """
        if not self._is_wanted:
            return batches
        options: dict[str, Any] = {"mininterval": _EVERY_S, "miniters": 1, "dynamic_ncols": True, "leave": False}
        bar = _Bar(batches, self._title, total, initial=done, disable=_IS_HIDDEN, **options)
        if bar.disable:
            return batches
        self._bar = bar
        return bar

    def show(self, means: Mapping[str, Any]) -> None:
        """Let numbers stand behind the bar."""
        if self._bar is not None:
            self.say(", ".join(get_format_strings(means)))

    def say(self, text: str) -> None:
        """Let a text stand behind the bar, from when it is next painted on."""
        if self._bar is not None:
            self._bar.set_postfix_str(" ".join(text.split()), refresh=False)

    def close(self) -> None:
        """Take the bar away."""
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.close()
