"""One torch thread a process, a fresh command line for every test, and a wide berth around the user's folders."""

import sys

import pytest
import torch
from hypothesis import settings

from vision3d_engine.core.cli import reset_parser
from vision3d_engine.logs.logger import set_logger

torch.set_num_threads(1)
settings.register_profile("engine", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("engine")


@pytest.fixture(autouse=True)
def _fresh_process_state(monkeypatch, tmp_path):
    """Undo what is process-wide: the shared parser, the current logger, the working folder."""
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.chdir(tmp_path)
    reset_parser()
    yield
    set_logger(None)


@pytest.fixture
def argv(monkeypatch):
    """Return a function that sets the command line of a script."""

    def set_argv(*words: str) -> None:
        reset_parser()
        monkeypatch.setattr(sys, "argv", ["train.py", *words])

    return set_argv
