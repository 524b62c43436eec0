"""Errors of transforms, recalls, inlier ratios."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.metrics.merging import assert_same, merged, taken_in
from vision3d_engine import ResultError
from vision3d_engine.metrics.registration import (
    FeatureMatchingRecall,
    RegistrationRecall,
    RMSERecall,
    inlier_ratio,
    rotation_error_deg,
)


def transform(angle_deg=0.0, translation=(0.0, 0.0, 0.0), axis=(0.0, 0.0, 1.0)):
    """Return a rotation about an axis, by Rodrigues' formula, and a translation."""
    x, y, z = np.array(axis) / np.linalg.norm(axis)
    cross, angle = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]), np.radians(angle_deg)
    matrix = np.eye(4)
    matrix[:3, :3] += np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    matrix[:3, 3] = translation
    return torch.from_numpy(matrix)


def random_transforms(generator, size, spread):
    vectors = generator.normal(size=(size, 6)) * spread
    return torch.stack([transform(np.linalg.norm(each[:3]) * 20, each[3:], each[:3]) for each in vectors])


@pytest.mark.parametrize("angle", [0, 1e-7, 1e-3, 1, 90, 179, 179.9999, 180])
def test_the_rotation_error_is_the_angle_also_where_its_cosine_is_flat(angle):
    base = transform(70, axis=(1, 2, 3))
    estimated = base @ transform(angle, axis=(3, -1, 2))
    assert rotation_error_deg(estimated, base).item() == pytest.approx(angle, rel=1e-9, abs=1e-10)


def test_the_rotation_error_is_that_of_scipy():
    spatial = pytest.importorskip("scipy.spatial.transform", reason="scipy is not installed")
    generator = np.random.default_rng(0)
    estimated, true = (random_transforms(generator, 50, 2.0) for _ in "ab")
    one, other = (spatial.Rotation.from_matrix(each[:, :3, :3].numpy()) for each in (estimated, true))
    expected = np.degrees((one.inv() * other).magnitude())
    assert rotation_error_deg(estimated, true).numpy() == pytest.approx(expected, rel=1e-9)


@given(st.integers(0, 2**16), st.lists(st.integers(0, 4), max_size=3), st.floats(0.1, 3))
def test_recall_and_errors_are_those_of_all_pairs_at_once_however_they_are_split(seed, cuts, spread):
    generator = np.random.default_rng(seed)
    batches = [tuple(random_transforms(generator, size, spread) for _ in range(2)) for size in (1, 3, 2, 2)]
    make = RegistrationRecall
    total = merged(make, batches, cuts)
    assert_same(total, taken_in(make, batches))
    estimated, true = (torch.cat(side).numpy() for side in zip(*batches, strict=True))
    traces = np.trace(estimated[:, :3, :3].transpose(0, 2, 1) @ true[:, :3, :3], axis1=1, axis2=2)
    rotation = np.degrees(np.arccos((traces - 1) / 2))
    translation = np.linalg.norm(estimated[:, :3, 3] - true[:, :3, 3], axis=1)
    right = (rotation < 5) & (translation < 2)
    expected = {"RR": right.mean(), "RRE/all": rotation.mean(), "RTE/all": translation.mean()}
    expected["RRE"] = rotation[right].mean() if right.any() else math.nan
    expected["RTE"] = translation[right].mean() if right.any() else math.nan
    assert total.compute() == pytest.approx(expected, nan_ok=True)


def test_a_pair_at_a_threshold_is_not_registered_and_errors_are_those_of_registered_pairs():
    metric = RegistrationRecall(max_rotation_deg=10, max_translation=2)
    for estimated in (transform(4, (1, 0, 0)), transform(0, (2, 0, 0)), transform(20), transform(0, (math.nan, 0, 0))):
        metric.update(estimated, transform())
    found = metric.compute()
    assert found["RR"] == 1 / 4
    assert (found["RRE"], found["RTE"]) == (pytest.approx(4), pytest.approx(1))
    assert math.isnan(found["RTE/all"])


@given(st.integers(0, 2**16), st.lists(st.integers(0, 3), max_size=2))
def test_the_recall_by_rmse_is_that_of_all_pairs_at_once_however_they_are_split(seed, cuts):
    generator = np.random.default_rng(seed)
    batches = [
        (
            torch.from_numpy(generator.normal(size=(size, 7, 3))),
            *(random_transforms(generator, size, 0.1) for _ in "ab"),
        )
        for size in (1, 2, 2)
    ]
    total = merged(RMSERecall, batches, cuts)
    assert_same(total, taken_in(RMSERecall, batches))
    points, estimated, true = (torch.cat(side).numpy() for side in zip(*batches, strict=True))
    errors = [
        np.sqrt(np.mean([np.sum(((e - t) @ [*point, 1]) ** 2) for point in cloud]))
        for cloud, e, t in zip(points, estimated, true, strict=True)
    ]
    right = [error for error in errors if error < 0.2]
    expected = {"RR": len(right) / len(errors), "RMSE": np.mean(right) if right else math.nan}
    assert total.compute() == pytest.approx(expected, nan_ok=True)


@given(st.integers(0, 2**16), st.lists(st.integers(0, 3), max_size=2))
def test_inlier_ratio_and_matched_pairs_are_those_of_all_at_once_however_they_are_split(seed, cuts):
    generator = np.random.default_rng(seed)
    batches = []
    for count in (0, 20, 3):
        true, source = random_transforms(generator, 1, 1.0)[0], generator.normal(size=(count, 3))
        noise = generator.normal(size=(count, 3)) * generator.choice([0.05, 0.5])
        target = source @ true[:3, :3].numpy().T + true[:3, 3].numpy() + noise
        batches.append((source, target, true, noise))
    noises = [batch[3] for batch in batches]
    batches = [batch[:3] for batch in batches]
    total = merged(FeatureMatchingRecall, batches, cuts)
    assert_same(total, taken_in(FeatureMatchingRecall, batches))
    ratios = [np.mean(np.linalg.norm(noise, axis=1) < 0.1) if len(noise) else 0.0 for noise in noises]
    assert total.compute() == pytest.approx({"IR": np.mean(ratios), "FMR": np.mean(np.array(ratios) > 0.05)})


def test_a_pair_is_matched_above_the_ratio_only_and_an_inlier_is_nearer_than_the_radius():
    source, target = torch.zeros(20, 3, dtype=torch.float64), torch.zeros(20, 3, dtype=torch.float64)
    target[1:, 0] = 0.5
    metric = FeatureMatchingRecall(radius=0.5, min_inlier_ratio=0.05)
    metric.update(source, target, transform())
    assert metric.compute() == {"IR": 0.05, "FMR": 0}
    target[1, 0] = 0.4
    metric.update(source, target, transform())
    assert metric.compute() == {"IR": pytest.approx(0.075), "FMR": 0.5}
    assert inlier_ratio(source, target, transform(), 0.5).item() == 0.1


def test_a_share_of_pairs_has_all_digits():
    poses = transform().repeat(3, 1, 1)
    poses[1:, 0, 3] = 3.0
    recall, matching = RegistrationRecall(), FeatureMatchingRecall()
    recall.update(poses, transform().repeat(3, 1, 1))
    matching.update(poses[:, :1, :3], poses[:, :1, :3], poses)
    assert recall.compute()["RR"] == 1 / 3
    assert matching.compute()["FMR"] == 1 / 3


def test_a_batch_counts_like_its_pairs():
    generator = np.random.default_rng(0)
    points, estimated, true = torch.randn(3, 5, 3), *(random_transforms(generator, 3, 0.1) for _ in "ab")
    for make, batch in ((RegistrationRecall, (estimated, true)), (RMSERecall, (points, estimated, true))):
        assert_same(taken_in(make, [batch]), taken_in(make, list(zip(*batch, strict=True))))
    batch = (points, points + 0.06, true)
    assert_same(
        taken_in(FeatureMatchingRecall, [batch]), taken_in(FeatureMatchingRecall, list(zip(*batch, strict=True)))
    )


def test_shapes_that_do_not_fit_are_errors_that_name_them():
    pose = transform()
    with pytest.raises(ResultError, match=r"transforms \(4, 4\) torch.float64 and \(3, 4\)"):
        RegistrationRecall().update(pose, pose[:3])
    with pytest.raises(ResultError, match=r"points \(2, 5, 3\) torch.float64 and transforms \(4, 4\)"):
        RMSERecall().update(torch.zeros(2, 5, 3), pose, pose)
    with pytest.raises(ResultError, match=r"expected \(N, 3\) for \(4, 4\)"):
        FeatureMatchingRecall().update(torch.zeros(5, 4), torch.zeros(5, 3), pose)
    with pytest.raises(ResultError, match=r"points \(50, 3\) torch.float64 and \(1, 3\).*all points alike"):
        FeatureMatchingRecall().update(torch.zeros(50, 3), torch.zeros(1, 3), pose)


def scaled(pose):
    pose = pose.clone()
    pose[:3, :3] *= 1.1
    return pose


def mirrored(pose):
    return pose * torch.tensor([-1.0, 1, 1, 1])


WRONG = {"transposed": lambda pose: pose.T, "scaled": scaled, "mirrored": mirrored}
each_wrong = pytest.mark.parametrize("spoil", WRONG.values(), ids=WRONG)
POSE = transform(30, (0.1, 2, 3))


@each_wrong
def test_transforms_that_are_not_rigid_are_told_by_number_when_the_metric_is_computed(spoil):
    points, wrong = torch.zeros(5, 3), spoil(POSE)
    for metric, batch, told in (
        (RegistrationRecall(), (wrong, wrong), "1 true and 1 estimated"),
        (RMSERecall(), (points, wrong, POSE), "0 true and 1 estimated"),
        (FeatureMatchingRecall(), (points, points, wrong), "1 true and 0 estimated"),
    ):
        metric.update(*batch)
        metric.update(*[POSE if each is wrong else each for each in batch])
        with pytest.raises(ResultError, match=f"{told} transforms, of 2 pairs, that are not rigid.*transpose those"):
            metric.compute()


def test_a_true_transform_must_be_finite_and_an_estimate_need_not():
    nothing = torch.full((4, 4), math.nan)
    metric = RegistrationRecall()
    metric.update(nothing, POSE)
    assert metric.compute()["RR"] == 0
    metric.update(POSE, nothing)
    with pytest.raises(ResultError, match="1 true and 0 estimated"):
        metric.compute()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rigid_transforms_of_short_floats_stay_rigid(dtype):
    poses = random_transforms(np.random.default_rng(0), 1000, 2.0)
    metric = RegistrationRecall()
    metric.update(poses.to(dtype), poses)
    assert metric.compute()["RR"] > 0.9
