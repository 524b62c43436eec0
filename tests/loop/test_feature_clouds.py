"""Captured features as colours of the points of a batch, in every layout of a batch that is usual."""

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from tests.toys import settings
from vision3d_engine import DataError, EpochBasedTrainer, MetricWriter, RegistrationError
from vision3d_engine.core.colors import value_colors
from vision3d_engine.data.collate import collate_packed
from vision3d_engine.endpoints.feature_colors import principal_colors

generator = torch.Generator().manual_seed(0)
POINTS = torch.randn(2, 50, 3, generator=generator)


class Keeps(MetricWriter):
    def __init__(self):
        self.clouds = {}

    def points(self, tag, points, colors, step):
        self.clouds[tag] = points, colors, step


class Trainer(EpochBasedTrainer):
    """A network whose module `features` returns what `layout` makes of the rows of the points."""

    def __init__(self, folder, batch, layout=lambda rows, _points: rows, **capture):
        super().__init__(settings(folder, val_every="never"))
        self.register_loader([batch])
        torch.manual_seed(0)
        self.layout, self.writer = layout, self.add_writer(Keeps())
        model = self.register_model(nn.ModuleDict({"linear": nn.Linear(3, 8), "features": nn.Identity()}))
        self.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.0))
        self.capture("features", every=1, **{"clouds": "points", **capture})

    def train_step(self, epoch, iteration, data_dict):
        points = data_dict["points"]
        rows = self.model["linear"](points[0] if isinstance(points, list) else points)
        found = self.model["features"](self.layout(rows, points))
        return {"thinned": POINTS[:, ::2]}, {"loss": found.square().mean()}


LAYOUTS = {
    "one cloud": (POINTS[0], None),
    "clouds of one size": (POINTS, None),
    "rows of all clouds": (POINTS, lambda rows, _points: rows.flatten(0, 1)),
    "channels first": (POINTS, lambda rows, _points: rows.transpose(1, 2)),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_each_point_has_the_colour_of_its_features(tmp_path, case):
    points, layout = LAYOUTS[case]
    trainer = Trainer(tmp_path, {"points": points}, layout or (lambda rows, _points: rows))
    trainer.run()
    (found, colors, step) = trainer.writer.clouds["endpoints/features/pca"]
    rows = trainer.model["linear"](points.reshape(-1, 3))
    expected = (principal_colors(rows) * 255).reshape(-1, points.shape[-2], 3)
    assert step == 1
    assert torch.equal(torch.from_numpy(found[0]), points.reshape(-1, points.shape[-2], 3)[0])
    for found_colors, own in zip(colors, expected, strict=True):
        assert torch.allclose(torch.from_numpy(found_colors).float(), own.detach(), atol=1)


def test_packed_clouds_are_written_one_by_one(tmp_path):
    sizes = [10, 30, 20, 15, 12]
    batch = collate_packed([{"points": torch.randn(size, 3, generator=generator)} for size in sizes])
    trainer = Trainer(tmp_path, batch)
    trainer.run()
    found, colors, _ = trainer.writer.clouds["endpoints/features/pca"]
    assert [len(each) for each in found] == [len(each) for each in colors] == sizes[:4], "four of a batch"


def test_a_channel_is_shown_on_the_scale_of_values(tmp_path):
    trainer = Trainer(tmp_path, {"points": POINTS[0]}, channel=2)
    trainer.run()
    _, (colors,), _ = trainer.writer.clouds["endpoints/features/channel-2"]
    rows = trainer.model["linear"](POINTS[0])
    assert (colors == value_colors(rows[:, 2].detach().numpy())).all()


def test_of_levels_of_detail_the_one_with_as_many_points_is_meant(tmp_path):
    levels = [POINTS[0], POINTS[0, ::2], POINTS[0, ::5]]
    trainer = Trainer(tmp_path, {"points": levels}, lambda rows, _points: rows[::2])
    trainer.run()
    (found,), *_ = trainer.writer.clouds["endpoints/features/pca"]
    assert torch.equal(torch.from_numpy(found), POINTS[0, ::2])


def test_points_may_be_among_what_the_step_returns(tmp_path):
    trainer = Trainer(tmp_path, {"points": POINTS}, lambda rows, _points: rows[:, ::2], clouds="thinned")
    trainer.run()
    found, *_ = trainer.writer.clouds["endpoints/features/pca"]
    assert torch.equal(torch.from_numpy(found[1]), POINTS[1, ::2])


def test_features_of_other_points_are_said_once_with_what_was_expected(tmp_path):
    trainer = Trainer(tmp_path, {"points": POINTS}, lambda rows, _points: rows[:, ::2])
    trainer.register_loader([{"points": POINTS}] * 3)
    trainer.run()
    assert trainer.writer.clouds == {}
    text = next((tmp_path / "logs").glob("train-*.log")).read_text()
    said = [line for line in text.splitlines() if "is of other points than" in line]
    assert len(said) == 1
    assert "the output (2, 25, 8) of 'features' is of other points than (2, 50, 3)" in said[0]
    assert "Expected (N, C), (B, N, C) or (B, C, N)" in said[0]


def test_clouds_and_histograms_are_in_tensorboard(tmp_path):
    Trainer(tmp_path, {"points": POINTS}, histograms=True).run()
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    found = events.Tags()
    assert found["histograms"] == ["endpoints/features", "endpoints/features/grad"]
    assert "endpoints/features/pca_COLOR" in found["tensors"]


@pytest.mark.parametrize(
    ("capture", "message"),
    [
        ({"clouds": "point"}, r"there is no 'point'; did you mean 'points'\?, expected the points \(N, 3\)"),
        ({"clouds": "label"}, r"got a tensor of shape \(50,\), expected the points"),
    ],
)
def test_points_that_are_not_there_are_an_error_with_the_nearest_name(tmp_path, capture, message):
    with pytest.raises(DataError, match=message):
        Trainer(tmp_path, {"points": POINTS[0], "label": torch.zeros(50)}, **capture).run()


def test_a_channel_needs_clouds(tmp_path):
    with pytest.raises(RegistrationError, match="channel=3 and clouds=None"):
        Trainer(tmp_path, {"points": POINTS[0]}, clouds=None, channel=3)


def test_numbers_that_are_not_finite_and_few_features_have_colours_too():
    rows = torch.randn(20, 2, generator=generator)
    rows[3] = float("nan")
    colors = principal_colors(rows)
    assert colors.shape == (20, 3)
    assert ((colors >= 0) & (colors <= 1)).all()
    assert (colors[:, 2] == 0.5).all()


def test_colours_are_alike_where_features_are_and_draw_no_random_numbers():
    centres = torch.randn(3, 16, generator=generator) * 5
    rows = centres.repeat_interleave(30, 0) + torch.randn(90, 16, generator=generator) * 0.01
    before = torch.get_rng_state()
    colors = principal_colors(rows).view(3, 30, 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert colors.std(dim=1).max() < 0.1
    assert torch.cdist(colors[:, 0], colors[:, 0]).add(torch.eye(3)).min() > 0.3
