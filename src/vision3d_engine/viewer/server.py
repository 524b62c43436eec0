"""Opens the viewer on a run: a server of its own, to which browsers come."""

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vision3d_engine.core.errors import ConfigError, EngineError, ResultError
from vision3d_engine.report.cases import Cases, asked_test, noted_order
from vision3d_engine.report.panels import Panel
from vision3d_engine.report.run_data import read_run
from vision3d_engine.viewer.controls import CaseControls, StepControls
from vision3d_engine.viewer.scene import Scene
from vision3d_engine.viewer.sources import TrainingSteps

_POINT_SIZES = (0.001, 0.05, 0.001, 0.008)  # least, greatest, step, first


class Viewer:
    """Shows the clouds of a run in browsers, until it is closed.

    Args:
        run: the run folder, or ``RUN:NAME`` for one of several tests in it.
        host: the address on which it listens: that of this machine alone, or ``0.0.0.0`` for all networks.
        port: where; the next one that is free.
        by: the number by which cases are sorted (default: what the tester's ``worst_by`` says).
        worst: whether its ``"largest"`` or its ``"smallest"`` are first (default: likewise, else the largest).

    Raises:
        ConfigError: when viser is not installed, or it cannot listen there.
        FolderError: when no run has worked in the folder.
        ResultError: when there is nothing to see, or for a number that no case has.

    Attributes:
        controls: what a person can choose, of cases and of steps, where there are some.
    """

    def __init__(
        self, run: Path, host: str = "127.0.0.1", port: int = 8080, by: str | None = None, worst: str | None = None
    ) -> None:
        test = asked_test(run)
        data, cases, training = read_run(test), Cases(test), TrainingSteps(test.run)
        order = noted_order(data.summary, by, worst)
        cases.sorted(order, 1)
        if not cases.count and not training.steps:
            raise ResultError(_NOTHING.format(data.folder))
        self._server = _listening(host, port, data.name)
        gui = self._server.gui
        gui.configure_theme(show_logo=False, show_share_button=False)
        gui.main_panel.dock_right()
        self._scene = Scene(self._server, _POINT_SIZES[-1])
        self._error = gui.add_markdown("", visible=False)
        self.controls: list[CaseControls | StepControls] = []
        if cases.count:
            self.controls.append(CaseControls(gui, cases, order, self._show))
        if training.steps:
            self.controls.append(StepControls(gui, training, self._show))
        size = gui.add_slider("point size", *_POINT_SIZES)
        size.on_update(lambda _: self._scene.set_point_size(size.value))
        self.controls[0].show()

    @property
    def port(self) -> int:
        """The port on which it listens."""
        return self._server.get_port()

    @property
    def said(self) -> str:
        """Why nothing is shown; empty when something is."""
        return self._error.content if self._error.visible else ""

    def _show(self, read: Callable[[], list[Panel]]) -> None:
        """Draw clouds; where they cannot be read, or there are none, say so beside the scene."""
        panels, said = [], _NO_CLOUD
        try:
            panels = read()
        except EngineError as error:
            said = str(error)
        self._error.content, self._error.visible = said, not panels
        self._scene.show(panels)

    def wait(self) -> None:
        """Wait until the process is interrupted, by Ctrl-C."""
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()

    def close(self) -> None:
        """Stop listening; browsers lose the connection."""
        self._server.stop()


def require_viser() -> Any:
    """Return the library that draws.

    Raises:
        ConfigError: when it is not installed.
    """
    try:
        import viser
    except ModuleNotFoundError as error:
        message = 'the viewer needs viser, which is not installed: pip install "vision3d-engine[view]"'
        raise ConfigError(message) from error
    return viser


def _listening(host: str, port: int, name: str) -> Any:
    """Return viser's server.

    Raises:
        ConfigError: when it is not installed, or cannot listen there.
    """
    viser = require_viser()
    try:
        with socket.socket() as probe:  # viser would wait for ever
            probe.bind((host, 0))
    except OSError as error:
        message = f"--host {host}: {error}. Give an address of this machine: 127.0.0.1, or 0.0.0.0 for all networks"
        raise ConfigError(message) from error
    return viser.ViserServer(host, port, label=name, verbose=False)


_NO_CLOUD = "There is no cloud in the files of this case: save_result needs an entry of the shape (N, 3)."
_NOTHING = (
    "'{}' has nothing to look at: no case was tested, and no cloud was written. Call save_result in the eval_step of a "
    "tester, or train with trainer.write_files and write_points"
)
