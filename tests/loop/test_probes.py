"""Hooks of tools that watch a script."""

import pytest

from tests.toys import ToyEpochTrainer, settings
from vision3d_engine import Hook
from vision3d_engine.loop.hooks import PROBES


class Calls(Hook):
    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    def after_train_epoch(self, epoch, summary_dict):
        self.calls.append(self.name)


@pytest.fixture
def calls():
    calls = []
    PROBES.append(lambda: Calls("probe", calls))
    yield calls
    PROBES.pop()


def test_a_probe_acts_after_the_hooks_that_a_script_adds(tmp_path, calls):
    trainer = ToyEpochTrainer(settings(tmp_path))
    trainer.add_hook(Calls("hook", calls))
    trainer.run()
    assert calls == ["hook", "probe"]
