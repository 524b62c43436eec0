"""Waiting for what must come: a test that passes waits for that alone, on a machine of any speed."""

import signal
import time

import pytest

# Only a test that fails waits so long; pytest's own limit ends whatever has none of its own.
PATIENCE_S = 240


def eventually(condition):
    """Wait until a condition holds."""
    patience = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < patience, "it did not come to pass"
        time.sleep(0.005)


def skip_if_ignored(number: int) -> None:
    """Skip a test of a signal that this process, and so its children, have been told to ignore, as by nohup."""
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip(f"{signal.Signals(number).name} is ignored here, as under nohup")
