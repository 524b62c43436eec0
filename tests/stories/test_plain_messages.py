"""What the engine says is plain text wherever no terminal reads it, whoever has coloured it before."""

import argparse
import os
from pathlib import Path

import torch

from tests.stories.launching import outputs_of, start

SCRIPT = Path(__file__).parent / "plain_messages_script.py"
IMPORTS = os.pathsep.join([str(SCRIPT.parents[2]), os.environ.get("PYTHONPATH", "")])


def test_neither_a_pipe_nor_a_file_gets_escape_sequences_of_a_terminal(tmp_path):
    torch.save({"model": {}, "args": argparse.Namespace()}, tmp_path / "other.pth")  # torch's message is in colours
    started = start(SCRIPT, tmp_path / "run", tmp_path / "other.pth", PYTHONPATH=IMPORTS)
    ((code, output, errors),) = outputs_of([started])
    assert code == 1
    assert "DamagedCheckpointError" in errors.splitlines()[-1]
    assert "torch says: Unsupported global: GLOBAL argparse.Namespace" in errors
    files = [path.read_text() for path in (tmp_path / "run").rglob("*.log")]
    for text in (output, errors, *files):
        assert "\033" not in text
    assert all("red words" in text for text in (errors, *files))
    assert len(files) == 1
