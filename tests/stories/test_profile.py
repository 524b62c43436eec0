"""Several processes are profiled: each leaves its own trace, the main one the table, and no bit changes."""

import gzip
import json
from pathlib import Path

import pytest

from tests.stories.launching import results_of, start_ranks

SCRIPT = Path(__file__).with_name("profile_script.py")


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_each_process_leaves_its_trace_and_the_main_one_the_table(tmp_path, parallel):
    plain = results_of(start_ranks(SCRIPT, tmp_path / "plain", parallel, "-"))
    profiled = results_of(start_ranks(SCRIPT, tmp_path / "profiled", parallel, "4:7"))
    assert plain == profiled
    for rank in range(2):
        with gzip.open(tmp_path / "profiled" / "debug" / f"profile-4-rank{rank}.json.gz") as file:
            names = {event["name"] for event in json.load(file)["traceEvents"]}
        assert names >= {"step 4", "step 5", "step 6", "data", "forward", "backward", "optimizer"}
    text = "".join(path.read_text() for path in (tmp_path / "profiled" / "logs").glob("*.log"))
    assert text.count("profile of steps 4 to 6") == 1
