"""What a run has written, as TensorBoard shows it in a real browser."""

import json
import re
import subprocess
import sys
from urllib.request import urlopen

import numpy as np
import pytest
import torch

from tests.browser import browser, share_of
from tests.patience import PATIENCE_S, eventually
from tests.toys import ToyEpochTrainer, settings
from vision3d_engine.core.colors import BLUE, GREEN, GREY, RED, value_colors

_ORANGE = (255, 112, 67)  # of the first run, in TensorBoard
_VIOLET, _YELLOW = value_colors([0.0, 1.0])
_PINK, _CYAN = (255, 0, 200), (0, 200, 255)


class Shows(ToyEpochTrainer):
    """Writes something of each kind after each epoch: clouds of several sizes, some far from the origin, some tiny."""

    def after_train_epoch(self, epoch, summary_dict):
        cloud = torch.rand(3000, 3, generator=torch.Generator().manual_seed(epoch), dtype=torch.float64)
        rows = torch.arange(0, 3000, 100)
        self.write_points("val/heights", [cloud, cloud[:500] + 4], values=[cloud[:, 2], cloud[:500, 2]], index=epoch)
        self.write_points("val/far", cloud + torch.tensor([5e5, 5e6, 300]), _PINK, index=epoch)
        self.write_points("val/tiny", cloud / 1000, _CYAN, index=epoch)
        pairs = torch.stack([rows, rows], 1)
        self.write_correspondences("val/pairs", cloud, cloud, pairs, is_inlier=rows % 200 == 0, index=epoch)
        self.write_image("val/pink", torch.tensor(_PINK, dtype=torch.uint8).expand(32, 32, 3), epoch, "HWC")
        self.write_histogram("val/errors", cloud, index=epoch)
        self.write_text("val/note", f"the **best** of {epoch}", index=epoch)
        self.draw(epoch)

    def draw(self, epoch):
        figure = pytest.importorskip("matplotlib.figure").Figure()
        figure.subplots().fill_between([0, 1], [1, 1], color=np.array(_CYAN) / 255)
        self.write_figure("val/figure", figure, epoch)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where TensorBoard shows a run of three epochs."""
    pytest.importorskip("tensorboard")
    folder = tmp_path_factory.mktemp("runs") / "shown"
    Shows(settings(folder, max_epoch=3)).run()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        try:
            told = next(line for line in server.stderr if "http://" in line)
            where = re.search(r"http://localhost:\d+", told).group().replace("localhost", "127.0.0.1")
            eventually(lambda: "val/note" in str(_told(where, "text/tags")))  # the last that is read
            yield where
        finally:
            server.terminate()
            server.communicate(timeout=PATIENCE_S)


def _told(address, what):
    """What TensorBoard says of the only run, which has the name of its folder of events."""
    with urlopen(f"{address}/data/plugin/{what}") as answer:
        return json.load(answer)["events"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("browser"), (1900, 1300)) as shown:
        yield shown


@pytest.fixture
def shown(address, page, tmp_path):
    """Opens a tab, waits for words, and for colours of its cards; returns the picture of the cards."""

    def cards(tab):
        return page.picture(tmp_path / f"{tab}.png")[120:, 350:]

    def show(tab, words, colors):
        page.open(f"{address}/#{tab}")
        eventually(lambda: all(word in page.text() for word in words))
        eventually(lambda: has_all(cards(tab), colors))
        return cards(tab)

    def has_all(picture, colors):
        return all(share_of(picture, color) > 0.00005 for color in colors)

    return show


def test_the_scalars_tab_draws_a_curve_under_the_name_of_each_number(address, shown):
    assert sorted(_told(address, "scalars/tags")) == ["train/loss", "train/lr", "train/mae", "val/mae"]
    shown("scalars", ["train/loss", "train/lr", "train/mae", "val/mae"], [_ORANGE])


def test_the_images_tab_shows_images_and_figures_with_their_step(shown):
    shown("images", ["val/figure", "val/pink", "step 3"], [_CYAN, _PINK])


def test_the_mesh_tab_shows_every_cloud_in_its_colors_with_z_upwards(shown):
    colors = [RED, GREEN, BLUE, GREY, _PINK, _CYAN, _YELLOW, _VIOLET]
    picture = shown("mesh", ["step 3", "sample: 2 of 2"], colors)
    assert _height(picture, _YELLOW) > _height(picture, _VIOLET) + 50, "the highest points are yellow"


def _height(picture, color):
    """How high pixels of a colour lie on the mean."""
    rows = np.nonzero(np.abs(picture.astype(int) - color).max(axis=2) <= 20)[0]
    return len(picture) - rows.mean()


def test_texts_and_histograms_stand_under_their_names(shown):
    shown("text", ["val/note", "the best of 3"], [])
    shown("histograms", ["val/errors"], [_ORANGE])
