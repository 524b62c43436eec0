"""Looks at a page in a real browser, without a screen; what it shows is kept as a picture."""

import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from tests.patience import PATIENCE_S

# WebGL without a graphics card; a page has so many milliseconds of its own clock, in which nothing is waited for.
_OPTIONS = (
    *("--headless=new", "--no-sandbox", "--hide-scrollbars", "--disable-dev-shm-usage", "--no-first-run"),
    *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
)


def screenshot(address, picture, size=(1200, 1600), budget_ms=20_000):
    """Keep a picture of a page, and return it as an array ``(H, W, 3)``; skip the test where there is no browser."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium is installed: apt-get install chromium")
    own = [f"--user-data-dir={picture.parent / 'profile'}", f"--window-size={size[0]},{size[1]}"]
    wanted = [f"--screenshot={picture}", f"--virtual-time-budget={budget_ms}", address]
    subprocess.run([browser, *_OPTIONS, *own, *wanted], capture_output=True, timeout=PATIENCE_S, check=True)
    return np.asarray(Image.open(picture).convert("RGB"))


def share_of(picture, color, distance=40):
    """The share of pixels that have about a colour."""
    return (np.abs(picture.astype(int) - color).max(axis=2) <= distance).mean()
