"""Trains on a format and tests the cases: ``field_formats_script.py FORMAT FOLDER``; says the loss of each case."""

import os
import sys
import time
from unittest.mock import patch

import torch

from tests.stories.field_formats import FORMATS, Cases, Trainer


def late_save(*args, save=torch.save):
    """A slow disk, of which only the main process knows."""
    time.sleep(0.5 if os.environ.get("RANK") == "0" else 0)
    save(*args)


if __name__ == "__main__":
    name, folder = sys.argv[1:3]
    del sys.argv[1:]
    with patch("torch.save", late_save):
        Trainer(FORMATS[name], folder).run()
    cases = Cases(FORMATS[name], folder, 2)
    cases.run()
    for loss in cases.losses:
        print(f"RESULT {loss:.5f}", flush=True)
