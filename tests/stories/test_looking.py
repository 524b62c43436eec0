"""The page of a report and the viewer, as a real browser shows them."""

import re
import signal
import subprocess
import sys

import pytest

from tests.browser import screenshot, share_of
from tests.patience import PATIENCE_S, skip_if_ignored
from tests.seen_runs import run_pairs
from vision3d_engine.commands import main
from vision3d_engine.core.colors import BLUE, GREEN, ORANGE, RED


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return run_pairs(tmp_path_factory.mktemp("runs") / "pairs")


def test_a_browser_shows_the_report_with_the_clouds_of_the_worst_cases(pairs, tmp_path):
    main(["report", str(pairs)])
    picture = screenshot((pairs / "report.html").as_uri(), tmp_path / "report.png")
    assert picture.shape == (1600, 1200, 3)
    for color in (ORANGE, BLUE, GREEN, RED):
        assert share_of(picture, color) > 0.0002, color
    assert 0.3 < share_of(picture, picture[0, 0], 12) < 0.95, "neither blank nor dark"


def test_a_browser_shows_the_clouds_of_the_worst_case_in_the_viewer_which_ctrl_c_ends(pairs, tmp_path):
    pytest.importorskip("viser")
    skip_if_ignored(signal.SIGINT)
    command = [sys.executable, "-m", "vision3d_engine", "view", str(pairs), "--port", "18080"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as viewer:
        try:
            told = next(line for line in viewer.stdout if "Ctrl-C" in line)
            address = re.search(r"http://127\.0\.0\.1:\d+", told).group()
            picture = screenshot(address, tmp_path / "viewer.png", (1280, 800))
        finally:
            viewer.send_signal(signal.SIGINT)
        rest = viewer.stdout.read()
        assert viewer.wait(PATIENCE_S) == 0, rest
    assert "Traceback" not in rest
    for color in (ORANGE, BLUE):
        assert share_of(picture, color) > 0.002, color
    assert share_of(picture, (255, 255, 255), 12) < 0.98
