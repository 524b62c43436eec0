"""The moving average of the weights: its numbers, where it is validated, what files hold of it, and its price."""

import copy
import random

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.toys import ToyBatchTester, ToyEpochTrainer, ToyIterTrainer, rows_loader, settings
from vision3d_engine import CheckpointError, ConfigError, NonFiniteError, RegistrationError
from vision3d_engine.commands import main

KINDS = pytest.mark.parametrize("kind", [ToyEpochTrainer, ToyIterTrainer])


def normed_model():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()


class Watches:
    """Notes the weights after each update and in each validation step."""

    def __init__(self, cfg=None, model=None, **options):
        super().__init__(cfg, **options)
        if model is not None:
            self.model = self.optimizer = self.scheduler = None
            self.register_optimizer(torch.optim.SGD(self.register_model(model).parameters(), lr=0.1))
        self.start, self.after_updates, self.validated = copy.deepcopy(self.model), [], []

    def optimizer_step(self):
        super().optimizer_step()
        self.after_updates.append(copy.deepcopy(self.model))

    def val_step(self, epoch, iteration, data_dict):
        self.validated.append(copied(self.model))
        return super().val_step(epoch, iteration, data_dict)


class Watching(Watches, ToyEpochTrainer):
    pass


class IterWatching(Watches, ToyIterTrainer):
    pass


def copied(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def saved(folder, name):
    return torch.load(folder / "checkpoints" / name, weights_only=True)


# ----------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("buffers", [False, True])
def test_the_average_has_the_bits_of_torchs_averaged_model(tmp_path, every, buffers):
    options = {"ema_decay": 0.7, "ema_warmup": False, "ema_every": every, "ema_buffers": buffers}
    toy = Watching(settings(tmp_path, max_epoch=2, **options), normed_model(), train_loader=rows_loader(10))
    toy.run()
    expected = AveragedModel(toy.start, multi_avg_fn=get_ema_multi_avg_fn(0.7), use_buffers=buffers)
    for model in toy.after_updates[every - 1 :: every]:
        expected.update_parameters(model)
    found, trained = toy.validated[-1], toy.model.state_dict()
    averaged = {name for name in found if buffers or "running" not in name}
    for name in found:
        own = expected.module.state_dict() if name in averaged and found[name].is_floating_point() else trained
        assert torch.equal(found[name], own[name]), name


@pytest.mark.parametrize("kind", [Watching, IterWatching])
@pytest.mark.parametrize("steps", [1, 2])
def test_the_average_follows_each_update_with_a_decay_that_warms_up(kind, steps, tmp_path):
    """Against a plain loop in float64, to 1e-14: the foreach kernel may round otherwise than the formula."""

    toy = kind(settings(tmp_path, max_epoch=4, grad_acc_steps=steps, ema_decay=0.4), train_loader=rows_loader(10))
    toy.run()
    average = toy.after_updates[0].weight
    for number, model in enumerate(toy.after_updates[1:], start=1):
        decay = min(0.4, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * model.weight
    assert len(toy.after_updates) == 4 * (5 if steps == 1 else 3)
    assert (toy.validated[-1]["weight"] - average).abs().max() <= 1e-14
    assert not torch.equal(toy.validated[-1]["weight"], toy.model.weight)


@KINDS
def test_training_has_the_same_bits_with_and_without_an_average(kind, tmp_path):
    def trained(name, **options):
        torch.manual_seed(1)
        toy = kind(settings(tmp_path / name, max_epoch=3, **options))
        drawn = []
        toy.add_hook(
            type("Draws", (), {"before_train_step": lambda *_: drawn.append((torch.rand(()), random.random()))})()
        )
        toy.run()
        return toy.model.state_dict(), drawn

    (weights, drawn), (others, also) = trained("off"), trained("on", ema_decay=0.9, ema_buffers=True)
    assert same(weights, others)
    assert drawn == also


def test_a_window_without_weight_makes_no_update_and_no_average(tmp_path):
    class Weightless(Watching):
        def loss_weight(self, data_dict, output_dict, result_dict):
            return 0 if self.iteration == 2 else 1

    toy = Weightless(settings(tmp_path, ema_decay=0.5))
    toy.run()
    assert saved(tmp_path, "checkpoint.pth")["ema"] == {"updates": 2, "averages": 2}


def test_parameters_of_several_types_that_are_frozen_shared_or_numbers_are_averaged_too(tmp_path):
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "head": nn.Linear(3, 1).double()})
    model["b"].weight = model["a"].weight
    model["a"].bias.requires_grad_(False)
    model.register_buffer("count", torch.tensor(0))

    class Mixed(Watching):
        def train_step(self, epoch, iteration, data_dict):
            self.model.count += 1
            return {}, {"loss": self.predict(data_dict).square().mean()}

        def predict(self, data_dict):
            parts = self.model
            return parts["head"](parts["b"](parts["a"](data_dict["x"].float())).double())

        def val_step(self, epoch, iteration, data_dict):
            self.validated.append(copied(self.model))
            return {}, {"size": self.predict(data_dict).abs().mean()}

    toy = Mixed(settings(tmp_path, max_epoch=2, ema_decay=0.8, ema_warmup=False, ema_buffers=True), model)
    toy.run()
    expected = AveragedModel(toy.start, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    for each in toy.after_updates:
        expected.update_parameters(each)
    assert same(toy.validated[-1], expected.module.state_dict())
    assert same(saved(tmp_path, "checkpoint.pth")["model"], toy.validated[-1])


def test_a_buffer_that_holds_infinity_on_purpose_is_averaged_where_it_does_not(tmp_path):
    model = normed_model()
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf, -torch.inf, 1.0]))
    toy = Watching(settings(tmp_path, max_epoch=2, ema_decay=0.5, ema_warmup=False, ema_buffers=True), model)

    def open_mask(epoch):
        toy.model.mask[1] = 2.0 if epoch == 2 else -torch.inf

    toy.before_train_epoch = open_mask
    toy.run()
    assert toy.validated[-1]["mask"].tolist() == [0, 2, -torch.inf, 1]


# ----------------------------------------------------------------------------------------------- validation


def test_the_validation_and_its_hooks_see_the_average_in_the_users_own_model_and_nothing_else_does(tmp_path):
    seen = {}

    class Looking(Watching):
        def look(self, moment):
            seen[moment] = copied(self.model)

        def after_train_epoch(self, epoch, summary_dict):
            self.look("after_train_epoch")

        def before_val_epoch(self, epoch):
            self.look("before_val_epoch")

        def after_val_epoch(self, epoch, summary_dict):
            self.look("after_val_epoch")

        def after_train(self):
            self.look("after_train")

    toy = Looking(settings(tmp_path, ema_decay=0.9))
    module, weight = toy.model, toy.model.weight
    toy.run()
    assert toy.model is module
    assert toy.model.weight is weight
    assert same(seen["after_train_epoch"], seen["after_train"])
    assert same(seen["before_val_epoch"], seen["after_val_epoch"])
    assert same(seen["before_val_epoch"], toy.validated[0])
    assert not same(seen["after_train"], toy.validated[0])


@pytest.mark.parametrize("moment", ["before_val_epoch", "before_val_step", "after_val_epoch"])
def test_an_exception_in_a_validation_leaves_the_trained_weights_in_the_model(tmp_path, moment):
    def fail(*_):
        raise OSError(28, "broken off")

    toy = Watching(settings(tmp_path, ema_decay=0.9))
    setattr(toy, moment, fail)
    with pytest.raises(OSError, match="broken off"):
        toy.run()
    assert same(copied(toy.model), toy.after_updates[-1].state_dict())


def test_a_validation_that_is_a_loop_of_the_scripts_own_has_the_average(tmp_path):
    class Own(Watching):
        def val_epoch(self):
            self.validated.append(copied(self.model))
            self.save("own.pth")

    toy = Own(settings(tmp_path, ema_decay=0.9))
    toy.run()
    assert same(saved(tmp_path, "checkpoint.pth")["model"], toy.validated[0])
    assert same(saved(tmp_path, "own.pth")["model"], toy.validated[0])
    assert not same(saved(tmp_path, "own.pth")["raw_model"], toy.validated[0])


def test_only_validation_has_the_average_of_a_checkpoint(tmp_path, argv):
    first = Watching(settings(tmp_path, ema_decay=0.9))
    first.run()
    for words in (("--resume",), ("--checkpoint", "checkpoint.pth")):
        argv(*words)
        again = Watching(settings(tmp_path, ema_decay=0.9))
        again.run(only_validation=True)
        assert same(again.validated[0], first.validated[-1])


def test_before_the_first_average_the_weights_are_their_own(tmp_path):
    toy = Watching(settings(tmp_path, ema_decay=0.9, ema_every=100))
    toy.run()
    file = saved(tmp_path, "checkpoint.pth")
    assert same(file["model"], file["raw_model"])
    assert same(file["model"], toy.validated[0])
    assert file["ema"] == {"updates": 3, "averages": 0}


# ----------------------------------------------------------------------------------------------- files


def test_every_file_holds_what_was_validated_and_beside_it_what_is_trained(tmp_path):
    toy = Watching(settings(tmp_path, max_epoch=3, ema_decay=0.9))
    toy.save_best_model_on_metric("mae", largest=False)
    at_end = {}
    toy.after_train_epoch = lambda epoch, summary: at_end.update({epoch: copied(toy.model)})
    toy.run()
    validated = toy.validated[1::2]
    for epoch in (1, 2, 3):
        file = saved(tmp_path, f"epoch-{epoch}.pth")
        assert same(file["model"], validated[epoch - 1])
        assert same(file["raw_model"], at_end[epoch])
        assert file["ema"] == {"updates": 3 * epoch, "averages": 3 * epoch}
    for name in ("best_mae.pth", "checkpoint.pth"):
        assert same(saved(tmp_path, name)["model"], validated[-1])
        assert same(saved(tmp_path, name)["raw_model"], at_end[3])


def test_testers_and_commands_take_the_average_without_knowing_of_it(tmp_path, capsys):
    from safetensors.torch import load_file

    toy = Watching(settings(tmp_path, ema_decay=0.9))
    toy.run()
    tester = ToyBatchTester(settings(tmp_path), checkpoint="checkpoint.pth")
    tester.run()
    assert same(copied(tester.model), toy.validated[-1])
    file = tmp_path / "checkpoints" / "checkpoint.pth"
    main(["export", str(file), str(tmp_path / "out.safetensors")])
    assert same(load_file(tmp_path / "out.safetensors"), toy.validated[-1])
    main(["inspect", str(file)])
    text = capsys.readouterr().out
    assert "parts: metadata, model, raw_model, ema, optimizer" in text
    assert "2 tensors, 4 numbers" in text


def test_a_model_with_a_state_of_its_own_making_is_saved_and_resumed_as_it_hands_it_out(tmp_path):
    class Odd(nn.Linear):
        """Hands out its weights under other names, and half as large."""

        def __init__(self):
            super().__init__(3, 1, dtype=torch.float64)
            self.register_state_dict_post_hook(lambda module, state, prefix, meta: module.hand_out(state))
            self.register_load_state_dict_pre_hook(lambda module, state, *_: module.take_in(state))

        def hand_out(self, state):
            for name in ("weight", "bias"):
                state[f"half_{name}"] = state.pop(name) / 2

        def take_in(self, state):
            for name in ("weight", "bias"):
                state[name] = state.pop(f"half_{name}") * 2

    def run(folder, epochs, **options):
        torch.manual_seed(0)
        toy = Watching(settings(folder, max_epoch=epochs, ema_decay=0.9, **options), Odd())
        toy.run()
        return toy

    straight = run(tmp_path / "straight", 2)
    assert torch.equal(saved(tmp_path / "straight", "checkpoint.pth")["model"]["half_weight"] * 2, average_of(straight))
    run(tmp_path / "cut", 1)
    resumed = run(tmp_path / "cut", 2, resume=True)
    assert same(copied(straight.model), copied(resumed.model))
    assert torch.equal(average_of(straight), average_of(resumed))


def average_of(toy):
    with toy._run.average.in_model():
        return toy.model.weight.detach().clone()


def test_weights_that_are_not_finite_are_not_saved_whichever_of_the_two_holds_them(tmp_path):
    class Breaking(Watching):
        def after_train_epoch(self, epoch, summary_dict):
            with torch.no_grad():
                self.model.weight.fill_(torch.nan)

    with pytest.raises(NonFiniteError, match=r"'epoch-1.pth' is not saved.*not finite are weight"):
        Breaking(settings(tmp_path, ema_decay=0.9, async_save=False)).run()


# ----------------------------------------------------------------------------------------------- resuming


@KINDS
@pytest.mark.parametrize("options", [{}, {"ema_every": 2, "grad_acc_steps": 2}, {"ema_buffers": True}], ids=str)
def test_a_run_broken_off_anywhere_ends_with_the_same_average(kind, options, tmp_path):
    class Stopping(kind):
        stop_at = None

        def after_train_step(self, *args):
            if self.total_steps == self.stop_at:
                raise OSError(28, "broken off")

    def start(folder, **more):
        cfg = settings(folder, max_epoch=3, ema_decay=0.9, save_every="2 iterations", **options, **more)
        return Stopping(cfg, rows_loader(11, shuffle=True))

    start(tmp_path / "straight").run()
    expected = saved(tmp_path / "straight", "checkpoint.pth")
    for at in (1, 2, 3, 7, 12, 18):
        toy = start(tmp_path / str(at))
        toy.stop_at = at
        with pytest.raises(OSError, match="broken off"):
            toy.run()
        start(tmp_path / str(at), resume=True).run()
        found = saved(tmp_path / str(at), "checkpoint.pth")
        assert all(same(found[part], expected[part]) for part in ("model", "raw_model"))
        assert found["ema"] == expected["ema"]


def test_a_validation_that_is_broken_off_resumes_with_the_average(tmp_path):
    def fail(*_):
        raise OSError(28, "broken off")

    straight = Watching(settings(tmp_path / "straight", max_epoch=2, ema_decay=0.9))
    straight.run()
    toy = Watching(settings(tmp_path / "cut", max_epoch=2, ema_decay=0.9))
    toy.after_val_step = fail
    with pytest.raises(OSError, match="broken off"):
        toy.run()
    resumed = Watching(settings(tmp_path / "cut", max_epoch=2, ema_decay=0.9, resume=True))
    resumed.run()
    assert all(map(same, straight.validated, resumed.validated))
    assert same(copied(straight.model), copied(resumed.model))


def test_run_again_in_the_same_process_goes_on_with_the_average(tmp_path):
    straight = Watching(settings(tmp_path / "straight", max_epoch=2, ema_decay=0.9))
    straight.run()
    toy = Watching(settings(tmp_path / "again", max_epoch=2, ema_decay=0.9))
    broken = []

    def fail_once(*_):
        if not broken:
            broken.append(True)
            raise OSError(28, "broken off")

    toy.before_val_step = fail_once
    with pytest.raises(OSError, match="broken off"):
        toy.run()
    toy.run()
    assert same(straight.validated[-1], toy.validated[-1])
    assert same(copied(straight.model), copied(toy.model))


def log_of(folder):
    return "".join(path.read_text() for path in sorted((folder / "logs").glob("train-*.log")))


def test_a_resume_that_turns_the_average_on_begins_it_with_the_loaded_weights_and_says_so(tmp_path):
    first = Watching(settings(tmp_path))
    first.run()
    toy = Watching(settings(tmp_path, max_epoch=2, resume=True, ema_decay=0.9, ema_warmup=False))
    toy.run()
    assert "checkpoint.pth' holds no average of the weights: trainer.ema_decay begins one" in log_of(tmp_path)
    assert saved(tmp_path, "checkpoint.pth")["ema"] == {"updates": 3, "averages": 3}
    again = Watching(settings(tmp_path, max_epoch=2))
    again.load("epoch-1.pth")
    assert same(copied(again.model), copied(first.model))


def test_a_resume_that_turns_the_average_off_goes_on_with_the_trained_weights_and_says_so(tmp_path):
    straight = Watching(settings(tmp_path / "straight", max_epoch=2))
    straight.run()
    Watching(settings(tmp_path / "cut", ema_decay=0.9)).run()
    resumed = Watching(settings(tmp_path / "cut", max_epoch=2, resume=True))
    resumed.run()
    assert "holds an average of the weights, but trainer.ema_decay is off" in log_of(tmp_path / "cut")
    assert same(copied(straight.model), copied(resumed.model))
    assert saved(tmp_path / "cut", "checkpoint.pth").keys().isdisjoint({"raw_model", "ema"})


@pytest.mark.parametrize("moment", ["after_train_epoch", "before_val_epoch", "after_val_epoch"])
def test_a_load_between_two_epochs_takes_both_and_in_a_validation_leaves_the_average_in_the_model(tmp_path, moment):
    class Returning(Watching):
        """Goes back to the first epoch, once."""

        has_returned = False

        def go_back(self):
            if self.epoch == 2 and not self.has_returned:
                self.has_returned = True
                self.load("epoch-1.pth")
                self.loaded = copied(self.model)

    setattr(Returning, moment, lambda self, *_: self.go_back())
    toy = Returning(settings(tmp_path, max_epoch=3, ema_decay=0.9))
    toy.run()
    file = saved(tmp_path, "epoch-1.pth")
    assert same(toy.loaded, file["raw_model" if moment == "after_train_epoch" else "model"])
    assert saved(tmp_path, "checkpoint.pth")["ema"]["averages"] < len(toy.after_updates)


@pytest.mark.parametrize("moment", ["after_train_step", "after_train_epoch", "before_val_epoch", "after_val_epoch"])
def test_weights_loaded_in_the_middle_are_trained_on_and_begin_the_average_anew(tmp_path, moment):
    other = nn.Linear(3, 1).double()
    torch.save(other.state_dict(), tmp_path / "other.pth")

    class Loading(Watching):
        def load_once(self):
            if self.epoch == 1 and self.iteration in (2, 3):
                self.load_weights(tmp_path / "other.pth")
                self.made = len(self.after_updates)

    setattr(Loading, moment, lambda self, *_: self.load_once())
    toy = Loading(settings(tmp_path, max_epoch=2, ema_decay=0.9, ema_warmup=False), lr=0)
    toy.run()
    assert same(copied(toy.model), other.state_dict())
    file = saved(tmp_path, "checkpoint.pth")
    assert same(file["raw_model"], other.state_dict())
    assert file["ema"]["averages"] == len(toy.after_updates) - toy.made
    assert "the average of the weights (trainer.ema_decay) begins anew" in log_of(tmp_path)


def test_a_checkpoint_of_another_model_is_refused_and_names_the_part(tmp_path):
    Watching(settings(tmp_path, ema_decay=0.9)).run()
    other = Watching(settings(tmp_path, ema_decay=0.9, resume=True), normed_model())
    with pytest.raises(CheckpointError, match=r"part 'model' of .* does not fit"):
        other.run()


# ----------------------------------------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.append(nn.Linear(1, 1).double()), r"'4.weight' was not there and is \(1, 1\)"),
        (lambda model: model.pop(3), r"'3.weight' was \(1, 4\) .* and is not there"),
        (lambda model: setattr(model, "0", nn.Linear(3, 5).double()), r"'0.weight' was \(4, 3\) .* is \(5, 3\)"),
        (lambda model: model.float(), r"'0.weight' was .*float64 .* is .*float32"),
    ],
)
def test_a_model_that_changes_its_parameters_in_training_is_an_error_that_says_so(tmp_path, change, message):
    toy = Watching(settings(tmp_path, ema_decay=0.9), normed_model())
    toy.after_train_epoch = lambda *_: change(toy.model)
    with pytest.raises(RegistrationError, match=f"trainer.ema_decay.*{message}"):
        toy.run()


def test_a_layer_that_is_exchanged_for_one_of_the_same_form_is_followed(tmp_path):
    toy = Watching(settings(tmp_path, max_epoch=2, ema_decay=0.9, ema_warmup=False), normed_model())

    def exchange(epoch):
        if epoch == 2:
            toy.model[3] = nn.Linear(4, 1).double()
            toy.optimizer.param_groups[0]["params"] = list(toy.model.parameters())

    toy.before_train_epoch = exchange
    toy.run()
    expected = AveragedModel(toy.start, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for model in toy.after_updates:
        expected.update_parameters(model)
    assert torch.equal(toy.validated[-1]["3.weight"], expected.module[3].weight)


@pytest.mark.parametrize("decay", [0, 1, -0.1, 1.5])
def test_a_decay_outside_of_zero_to_one_is_refused(tmp_path, decay):
    with pytest.raises(ConfigError, match="ema_decay"):
        ToyEpochTrainer(settings(tmp_path, ema_decay=decay))


def test_a_script_may_call_what_it_likes_ema(tmp_path):
    toy = Watching(settings(tmp_path, ema_decay=0.9))
    toy.ema = toy.average = object()
    toy.run()
    assert not same(saved(tmp_path, "checkpoint.pth")["model"], copied(toy.model))


def test_an_average_of_the_scripts_own_goes_on_beside_the_engines(tmp_path):
    def start(**options):
        toy = Watching(settings(tmp_path, ema_decay=0.5, ema_warmup=False, **options))
        toy.ema = toy.register_state("ema", AveragedModel(toy.model, multi_avg_fn=get_ema_multi_avg_fn(0.5)))
        toy.after_train_step = lambda *_: toy.ema.update_parameters(toy.model)
        return toy

    start(max_epoch=1).run()
    toy = start(max_epoch=2, resume=True)
    toy.run()
    assert same(copied(toy.ema.module), toy.validated[-1])


# ----------------------------------------------------------------------------------------------- price


def test_without_an_average_nothing_follows_an_update(tmp_path):
    assert ToyEpochTrainer(settings(tmp_path))._run.average.follower() is None


def test_an_update_is_one_kernel_a_type_and_reads_nothing(tmp_path):
    from torch.profiler import profile

    toy = ToyEpochTrainer(settings(tmp_path, ema_decay=0.9))
    toy.run()
    step = toy._run.average.follower()
    with profile(acc_events=True) as recorded:
        step()
    names = [event.name for event in recorded.events() if event.name.startswith("aten::")]
    assert names.count("aten::_foreach_lerp_") == 1
    assert not {"aten::item", "aten::_local_scalar_dense"} & set(names)
