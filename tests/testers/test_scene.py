"""Whole scenes: cut into fragments, voted on, put together, evaluated once."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from tests.toys import settings
from vision3d_engine import (
    ConfigError,
    DataError,
    ResultError,
    SceneTester,
    SkipBatch,
    build_dataloader,
    collate_packed,
)
from vision3d_engine.data.fragments import overlapping_blocks, spheres, take_points, voxel_picks, voxel_subsample
from vision3d_engine.data.votes import flipped, turned

CLASSES = 5


def network(dtype=torch.float64):
    """A network that looks at single points."""
    generator = torch.Generator().manual_seed(3)
    layers = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, CLASSES)).to(dtype)
    for weight in layers.parameters():
        nn.init.normal_(weight, generator=generator)
    return layers


def make_scene(num_points=300, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(num_points, 3, generator=generator, dtype=dtype) * 4
    return {"points": points, "labels": torch.arange(num_points) % CLASSES, "name": f"room {seed}"}


class ToySceneTester(SceneTester):
    """Cuts by a function that a test sets, and notes what it is given."""

    cut = staticmethod(lambda points: overlapping_blocks(points, 1.5, 1.0, 40))

    def __init__(self, folder, scenes=None, dtype=torch.float64, **trainer):
        super().__init__(settings(folder, **trainer), "weights.pth")
        self.register_loader([make_scene(dtype=dtype)] if scenes is None else scenes)
        self.register_model(network(dtype))
        torch.save({"model": self.model.state_dict()}, folder / "weights.pth")
        self.load_from = folder / "weights.pth"
        self.calls, self.sizes, self.seen = [], [], []

    def _checkpoint_name(self):
        return str(self.load_from)

    def before_test_step(self, iteration, data_dict):
        self.calls.append(("before_test_step", iteration))

    def split_scene(self, iteration, data_dict):
        self.calls.append(("split_scene", iteration))
        for found in self.cut(data_dict["points"]):
            index, weight = found if isinstance(found, tuple) else (found, None)
            yield take_points(data_dict, index) | ({} if weight is None else {"weight": weight})

    def test_step(self, iteration, data_dict):
        self.calls.append(("test_step", iteration))
        self.sizes.append(list(data_dict["lengths"]))
        return {"logits": self.model(data_dict["points"])}

    def eval_step(self, iteration, data_dict, output_dict):
        self.calls.append(("eval_step", iteration))
        self.seen.append((data_dict, output_dict))
        return {"accuracy": (output_dict["prediction"] == data_dict["labels"]).double().mean()}

    def after_test_step(self, iteration, data_dict, output_dict, result_dict):
        self.calls.append(("after_test_step", iteration))

    def after_test_epoch(self, summary_dict):
        self.summary = dict(summary_dict)


def run(folder, scenes=None, **attributes):
    toy = ToySceneTester(folder, scenes)
    for name, value in attributes.items():
        setattr(toy, name, value)
    toy.run()
    return toy


CUTS = {
    "blocks": lambda points: overlapping_blocks(points, 1.5, 1.0, 40),
    "spheres": lambda points: spheres(points, 1.0, 70),
    "picks": lambda points: voxel_picks(points, 0.8),
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(
    "batch", [{"fragment_batch_size": 1}, {"fragment_batch_size": 3}, {"fragment_batch_points": 64}]
)
def test_a_network_of_single_points_gives_what_one_pass_over_the_scene_gives(tmp_path, cut, batch):
    (_, output_dict) = run(tmp_path, cut=CUTS[cut], **batch).seen[0]
    expected = network()(make_scene()["points"])
    torch.testing.assert_close(output_dict["logits"], expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(output_dict["prediction"], expected.argmax(1))


@pytest.mark.parametrize("cut", CUTS)
def test_float32_scenes_are_those_of_one_pass_up_to_its_rounding(tmp_path, cut):
    toy = ToySceneTester(tmp_path, dtype=torch.float32)
    toy.cut = CUTS[cut]
    toy.run()
    expected = network(torch.float32)(make_scene(dtype=torch.float32)["points"])
    torch.testing.assert_close(toy.seen[0][1]["logits"], expected, rtol=1e-5, atol=1e-5)


def test_the_same_fragment_batches_give_the_same_bits_and_one_fragment_those_of_one_pass(tmp_path):
    first, second = (run(tmp_path, cut=CUTS["spheres"]).seen[0][1]["logits"] for _ in range(2))
    assert torch.equal(first, second)
    whole = run(tmp_path, cut=lambda points: [torch.arange(len(points))]).seen[0][1]["logits"]
    assert torch.equal(whole, network()(make_scene()["points"]))


def test_a_scene_that_is_not_split_is_one_fragment(tmp_path):
    toy = ToySceneTester(tmp_path)
    toy.split_scene = lambda iteration, data_dict: SceneTester.split_scene(toy, iteration, data_dict)
    toy.run()
    assert toy.sizes == [[300]]
    assert torch.equal(toy.seen[0][1]["logits"], network()(make_scene()["points"]))


def test_every_scene_is_evaluated_once_after_all_of_its_fragments(tmp_path):
    toy = run(tmp_path, [make_scene(40, seed) for seed in (0, 1)], cut=lambda points: torch.arange(40).split(16))
    toy.fragment_batch_size = 2
    toy.calls.clear()
    toy.run()
    steps = ("before_test_step", "split_scene", "test_step", "test_step", "eval_step", "after_test_step")
    assert toy.calls == [(name, iteration) for iteration in (1, 2) for name in steps]


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"fragment_batch_size": 2}, [[10, 20], [5, 30], [8]]),
        ({"fragment_batch_size": 1}, [[10], [20], [5], [30], [8]]),
        ({"fragment_batch_points": 25}, [[10], [20, 5], [30], [8]]),
        ({"fragment_batch_size": 2, "fragment_batch_points": 40}, [[10, 20], [5, 30], [8]]),
        ({"fragment_batch_points": 1000}, [[10, 20, 5, 30, 8]]),
    ],
)
def test_batches_of_fragments_keep_both_bounds_but_for_a_fragment_that_is_too_large(tmp_path, attributes, expected):
    toy = run(tmp_path, [make_scene(73)], cut=lambda points: torch.arange(73).split([10, 20, 5, 30, 8]), **attributes)
    assert toy.sizes == expected


def test_fragments_are_taken_as_they_are_yielded_so_that_one_batch_of_them_is_in_memory(tmp_path):
    made, made_at_steps = [], []

    class Watching(ToySceneTester):
        def split_scene(self, iteration, data_dict):
            for index in torch.arange(300).split(10):
                made.append(index)
                yield take_points(data_dict, index)

        def test_step(self, iteration, data_dict):
            made_at_steps.append(len(made))
            return super().test_step(iteration, data_dict)

    Watching(tmp_path).run()
    assert made_at_steps == [9, 17, 25, 30]  # a batch of eight, and the one that did not fit


def test_weights_decide_between_fragments_that_disagree(tmp_path):
    class Disagreeing(ToySceneTester):
        def split_scene(self, iteration, data_dict):
            everything = take_points(data_dict, torch.arange(300))
            yield everything | {"weight": torch.full((300,), 3.0), "says": 1.0}
            yield everything | {"weight": torch.full((300,), 1.0), "says": 5.0}

        def test_step(self, iteration, data_dict):
            said = data_dict["says"].repeat_interleave(torch.tensor(data_dict["lengths"]))
            return {"logits": said[:, None].expand(-1, CLASSES)}

    toy = Disagreeing(tmp_path)
    toy.run()
    assert torch.equal(toy.seen[0][1]["logits"], torch.full((300, CLASSES), 2.0, dtype=toy.seen[0][1]["logits"].dtype))


def test_every_augmentation_gives_one_more_vote_of_every_fragment(tmp_path):
    views = [turned(90), flipped(0)]
    toy = run(tmp_path, augmentations=lambda: views, cut=lambda points: torch.arange(300).split(100))
    assert sum(map(len, toy.sizes)) == 9
    points = make_scene()["points"]
    votes = [network()(each["points"]) for each in ({"points": points}, *(view({"points": points}) for view in views))]
    torch.testing.assert_close(toy.seen[0][1]["logits"], sum(votes) / 3, rtol=1e-12, atol=1e-12)


def test_softmax_votes_are_a_mean_of_probabilities(tmp_path):
    views = [turned(90)]
    output_dict = run(tmp_path, vote="softmax", augmentations=lambda: views).seen[0][1]
    points = make_scene()["points"]
    expected = (network()(points).softmax(1) + network()(turned(90)({"points": points})["points"]).softmax(1)) / 2
    assert set(output_dict) == {"probabilities", "prediction"}
    torch.testing.assert_close(output_dict["probabilities"], expected, rtol=1e-12, atol=1e-12)


def test_what_was_predicted_for_a_subsample_is_brought_back_to_all_raw_points(tmp_path):
    raw = make_scene(2000)
    index, inverse = voxel_subsample(raw["points"], 0.5)
    scene = take_points(raw, index) | {"labels": raw["labels"], "inverse": inverse}
    data_dict, output_dict = run(tmp_path, [scene]).seen[0]
    assert len(index) < 1000
    assert data_dict["labels"].shape == output_dict["prediction"].shape == (2000,)
    expected = network()(raw["points"][index])[inverse]
    torch.testing.assert_close(output_dict["logits"], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [{"batch_size": None}, {"batch_size": 1, "collate_fn": collate_packed}, {"batch_size": 1}],
    ids=["no batches", "collate_packed", "torch's default"],
)
@pytest.mark.parametrize("build", [DataLoader, build_dataloader])
def test_a_loader_may_collate_the_one_scene_in_three_ways(tmp_path, options, build):
    raw = make_scene(500)
    index, inverse = voxel_subsample(raw["points"], 0.7)
    scenes = [take_points(raw, index) | {"labels": raw["labels"], "inverse": inverse, "name": "hall"}]
    data_dict, output_dict = run(tmp_path, build(scenes, num_workers=0, **options)).seen[0]
    assert data_dict["points"].shape == (len(index), 3)
    assert data_dict["name"] == "hall"
    assert output_dict["logits"].shape == (500, CLASSES)


def test_a_skipped_fragment_skips_its_scene_and_the_test_goes_on(tmp_path):
    class Skipping(ToySceneTester):
        def test_step(self, iteration, data_dict):
            if iteration == 2:
                raise SkipBatch("too few points")
            return None if iteration == 3 else super().test_step(iteration, data_dict)

    toy = Skipping(tmp_path, [make_scene(50, seed) for seed in range(4)])
    toy.run()
    assert toy.summary["skipped"] == 2
    assert [data_dict["name"] for data_dict, _ in toy.seen] == ["room 0", "room 3"]


def test_under_bf16_only_the_network_computes_in_16_bits(tmp_path):
    dtypes = []

    class Half(ToySceneTester):
        def split_scene(self, iteration, data_dict):
            dtypes.append((data_dict["points"] @ torch.eye(3)).dtype)
            yield from super().split_scene(iteration, data_dict)

        def test_step(self, iteration, data_dict):
            output_dict = super().test_step(iteration, data_dict)
            dtypes.append(output_dict["logits"].dtype)
            return output_dict

    toy = Half(tmp_path, dtype=torch.float32, precision="bf16")
    toy.run()
    assert set(dtypes) == {torch.float32, torch.bfloat16}
    assert dtypes[0] == toy.seen[0][1]["logits"].dtype == torch.float32


def test_the_batch_of_fragments_and_the_name_of_the_logits_may_be_the_users_own(tmp_path):
    class Own(ToySceneTester):
        def collate_fragments(self, fragments):
            return {"coordinates": torch.cat([each["points"] for each in fragments])}

        def test_step(self, iteration, data_dict):
            return [self.model(data_dict["coordinates"])]

        def fragment_logits(self, output_dict):
            return output_dict[0]

    toy = Own(tmp_path)
    toy.run()
    torch.testing.assert_close(toy.seen[0][1]["logits"], network()(make_scene()["points"]), rtol=1e-12, atol=1e-12)


def _fragment(**entries):
    return lambda iteration, scene: [take_points(scene, torch.arange(300)) | entries]


@pytest.mark.parametrize(
    ("split_scene", "message"),
    [
        (
            lambda iteration, scene: [take_points(scene, torch.arange(100, 290))],
            "110 of 300 points of scene 1 are in no fragment with a finite weight above 0, the first is 0: let",
        ),
        (_fragment(weight=torch.zeros(300)), "300 of 300 points of scene 1 are in no fragment"),
        (lambda iteration, scene: None, "split_scene yields no point of scene 1"),
        (lambda iteration, scene: [torch.arange(300)], "a fragment of scene 1 is .*; split_scene must yield dicts"),
        (_fragment(index=None), r"fragment\['index'\] of scene 1 is None; expected a tensor \(n,\) of int64"),
        (_fragment(index=torch.ones(300) > 0), r"fragment\['index'\] of scene 1 is .*; expected a tensor"),
        (_fragment(index=torch.arange(1, 301)), "is numbers from 1 to 300; .* among the 300 of the scene"),
        (_fragment(weight=torch.ones(299)), r"fragment\['weight'\] of scene 1 is .*; expected a tensor \(300,\)"),
        (
            lambda iteration, scene: [take_points(scene, torch.arange(302) // 2), _fragment()(1, scene)[0]],
            "a fragment of scene 1 has a point twice in its index",
        ),
    ],
)
def test_fragments_that_do_not_make_the_scene_stop_the_test_and_say_why(tmp_path, split_scene, message):
    with pytest.raises(DataError, match=message):
        run(tmp_path, split_scene=split_scene)


def test_an_empty_scene_is_told_with_its_name_and_how_to_leave_it_out(tmp_path):
    with pytest.raises(DataError, match=r"scene 2 \('hall'\) is empty: leave it out by raise SkipBatch"):
        run(tmp_path, [make_scene(), {"points": torch.zeros(0, 3), "name": "hall"}])


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"scores": 1}, r"no 'logits' of fragments \(got: scores\).* or override fragment_logits"),
        (torch.zeros(3), "no 'logits' of fragments"),
        ({"logits": torch.zeros(7, CLASSES)}, r"logits of fragments of scene 1 are .*; expected a tensor \(300, C\)"),
    ],
)
def test_a_step_without_a_row_a_point_stops_the_test_and_says_what_is_expected(tmp_path, returned, message):
    with pytest.raises(ResultError, match=message):
        run(tmp_path, split_scene=_fragment(), test_step=lambda iteration, data_dict: returned)


@pytest.mark.parametrize("cut", [torch.arange(300).split(300), torch.arange(300).split(150)])
def test_a_step_whose_classes_change_within_a_scene_stops_the_test(tmp_path, cut):
    class Changing(ToySceneTester):
        fragment_batch_size = 1

        def split_scene(self, iteration, data_dict):
            yield from [take_points(data_dict, index) for index in (*cut, *cut)]

        def test_step(self, iteration, data_dict):
            self.sizes.append(len(self.sizes))
            return {"logits": self.model(data_dict["points"])[:, : CLASSES if len(self.sizes) == 1 else 1]}

    with pytest.raises(ResultError, match=rf"expected a tensor \({len(cut[0])}, 5\), as before in this scene"):
        Changing(tmp_path).run()


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1.0])
def test_weights_that_are_no_numbers_from_0_on_are_refused(tmp_path, weight):
    weights = torch.ones(300).index_fill(0, torch.tensor(7), weight)
    cut = lambda points: [(torch.arange(300), torch.full((300,), 2.0)), (torch.arange(300), weights)]  # noqa: E731
    with pytest.raises(DataError, match=r"fragment\['weight'\] of scene 1 is NaN, infinite or below 0 at some points"):
        run(tmp_path, cut=cut)


def test_weights_whose_sum_is_infinite_are_refused(tmp_path):
    weight = torch.full((300,), 1e308, dtype=torch.float64)
    with pytest.raises(DataError, match="300 of 300 points of scene 1 are in no fragment with a finite weight"):
        run(tmp_path, cut=lambda points: [(torch.arange(300), weight)] * 2)


def test_fragments_whose_points_and_indices_differ_in_length_are_refused_though_the_batch_fits(tmp_path):
    def split_scene(iteration, scene):
        points = scene["points"]
        yield {"points": points[:290], "index": torch.arange(300)}
        yield {"points": torch.cat([points, points[:10]]), "index": torch.arange(300)}

    with pytest.raises(DataError, match="of scene 1 have 290, 310 points, and 300, 300 in their index"):
        run(tmp_path, split_scene=split_scene)


def test_logits_of_thinned_fragments_may_be_brought_back_to_the_points_of_the_index(tmp_path):
    class Thinned(ToySceneTester):
        def split_scene(self, iteration, data_dict):
            index, self.inverse = voxel_subsample(data_dict["points"], 0.5)
            yield {"points": data_dict["points"][index], "index": torch.arange(300)}

        def fragment_logits(self, output_dict):
            return output_dict["logits"][self.inverse]

    toy = Thinned(tmp_path)
    toy.run()
    assert len(toy.seen[0][1]["prediction"]) == 300


@pytest.mark.parametrize("size", [1, 2, 8])
def test_views_that_are_made_in_place_leave_scene_and_other_views_as_they_are(tmp_path, size):
    class InPlace(ToySceneTester):
        fragment_batch_size = size

        def split_scene(self, iteration, data_dict):
            fragment, index = {}, torch.empty(100, dtype=torch.long)
            for at in (0, 100, 200):  # of one buffer and one dict
                index.copy_(torch.arange(at, at + 100))
                fragment.update(points=data_dict["points"][at : at + 100], index=index)
                yield fragment

        def augmentations(self):
            return [lambda fragment: fragment, self.flip, self.flip]

        def flip(self, fragment):
            fragment["points"].mul_(-1)
            return fragment

    toy = InPlace(tmp_path)
    toy.run()
    data_dict, output_dict = toy.seen[0]
    points = make_scene()["points"]
    assert torch.equal(data_dict["points"], points)
    expected = (network()(points) + network()(-points)) / 2
    torch.testing.assert_close(output_dict["logits"], expected, rtol=1e-12, atol=1e-12)


def test_several_scenes_in_one_batch_are_refused(tmp_path):
    scenes = DataLoader([make_scene(30, seed) for seed in range(2)], batch_size=2, collate_fn=collate_packed)
    with pytest.raises(
        DataError, match="one scene a batch, and this one holds 2: give its loader batch_size=1, or None"
    ):
        run(tmp_path, scenes)


def test_an_inverse_that_points_outside_the_scene_is_refused(tmp_path):
    scene = make_scene() | {"inverse": torch.tensor([0, 300])}
    with pytest.raises(DataError, match=r"data_dict\['inverse'\] of scene 1 is numbers from 0 to 300"):
        run(tmp_path, [scene])


@pytest.mark.parametrize("wrong", [{"fragment_batch_size": 0}, {"fragment_batch_points": 1.5}, {"vote": "argmax"}])
def test_a_wrong_attribute_is_named(tmp_path, wrong):
    with pytest.raises(ConfigError, match=f"ToySceneTester.{next(iter(wrong))} is .*; set it to"):
        run(tmp_path, **wrong)


def test_a_test_of_few_scenes_ends_where_it_is_told(tmp_path):
    toy = ToySceneTester(tmp_path, [make_scene(50, seed) for seed in range(4)], limit_batches=2)
    toy.run()
    assert len(toy.seen) == 2
