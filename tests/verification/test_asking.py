"""What verify-resume may be asked for."""

from pathlib import Path

import pytest

from vision3d_engine.core.errors import ConfigError
from vision3d_engine.verification import verify_resume


@pytest.mark.parametrize(("steps", "kills"), [(12, 0), (0, 6)])
def test_less_than_one_step_or_kill_is_refused(steps, kills):
    with pytest.raises(ConfigError, match=f"got steps {steps} and kills {kills}; expected are at least 1 of each"):
        verify_resume(Path("train.py"), [], steps, kills, seed=0, say=print)
