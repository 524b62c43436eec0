"""A compiled model, with a backend that needs no C++ compiler: it is used, and its files are those of any model."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.toys import ToyBatchTester, ToyEpochTrainer, ToyIterTrainer, linear_model, rows_loader, settings
from vision3d_engine import ConfigError

_compile = torch.compile


@pytest.fixture(autouse=True)
def compiled(monkeypatch):
    """Replace the backend; return the modes asked for, and how many graphs were made and run."""
    seen = {"modes": [], "graphs": 0, "calls": 0}

    def backend(graph, inputs):
        seen["graphs"] += 1

        def run(*args):
            seen["calls"] += 1
            return graph(*args)

        return run

    def compile_eagerly(function, mode=None):
        seen["modes"].append(mode)
        return _compile(function, backend=backend)

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", compile_eagerly)
    yield seen
    torch.compiler.reset()


class Net(nn.Module):
    """A model of a user's; torch compiles no bare module of its own."""

    def __init__(self):
        super().__init__()
        self.head = linear_model()

    def forward(self, x):
        return self.head(x) * 2


class _WithNet:
    def _register(self, train_loader, val_loader, lr):
        super()._register(train_loader, val_loader, lr)
        self.model = self.optimizer = None  # those of the class above
        model = self.register_model(Net())
        self.register_optimizer(torch.optim.SGD(model.parameters(), lr=lr))
        self.register_scheduler(None)


class EpochTrainer(_WithNet, ToyEpochTrainer):
    pass


class IterTrainer(_WithNet, ToyIterTrainer):
    pass


class NetTester(ToyBatchTester):
    def _register(self, loader):
        super()._register(loader)
        self.model = None
        self.register_model(Net())


@pytest.mark.parametrize("kind", [EpochTrainer, IterTrainer])
def test_the_compiled_forward_is_the_one_that_trains_and_validates(kind, compiled, tmp_path):
    compiled["modes"].clear()
    toy = kind(settings(tmp_path, compile="default"), rows_loader(8), rows_loader(4))
    toy.run()
    assert set(compiled["modes"]) == {"default"}
    assert compiled["graphs"] >= 1
    assert compiled["calls"] == 4 + 2
    assert type(toy.model) is Net


def test_without_the_setting_nothing_is_compiled(compiled, tmp_path):
    ToyEpochTrainer(settings(tmp_path)).run()
    assert compiled == {"modes": [], "graphs": 0, "calls": 0}


def test_names_of_weights_are_those_of_the_users_model_and_numbers_those_of_one_that_is_not_compiled(tmp_path):
    compiled = EpochTrainer(settings(tmp_path / "compiled", compile="default"))
    plain = EpochTrainer(settings(tmp_path / "plain"))
    for toy in (compiled, plain):
        toy.run()
    files = [tmp_path / name / "checkpoints" / "checkpoint.pth" for name in ("compiled", "plain")]
    found, expected = (torch.load(file, weights_only=True) for file in files)
    assert list(found["model"]) == ["head.weight", "head.bias"]
    assert all(torch.equal(found["model"][key], expected["model"][key]) for key in expected["model"])


@pytest.mark.parametrize("first", ["default", None])
@pytest.mark.parametrize("second", ["default", None])
def test_a_run_resumes_with_or_without_compilation(first, second, compiled, tmp_path):
    EpochTrainer(settings(tmp_path / "straight", max_epoch=3)).run()
    EpochTrainer(settings(tmp_path / "broken", max_epoch=1, compile=first)).run()
    calls = compiled["calls"]
    EpochTrainer(settings(tmp_path / "broken", max_epoch=3, compile=second, resume=True)).run()
    assert (compiled["calls"] > calls) is (second is not None)
    files = [tmp_path / name / "checkpoints" / "checkpoint.pth" for name in ("straight", "broken")]
    straight, broken = (torch.load(file, weights_only=True)["model"] for file in files)
    assert all(torch.equal(straight[key], broken[key]) for key in straight)


def test_a_tester_compiles_too_and_loads_the_weights_of_a_compiled_run(compiled, tmp_path):
    EpochTrainer(settings(tmp_path, compile="default")).run()
    calls = compiled["calls"]
    NetTester(settings(tmp_path, compile="reduce-overhead"), checkpoint="checkpoint.pth").run()
    assert set(compiled["modes"]) == {"default", "reduce-overhead"}
    assert compiled["calls"] > calls


def test_a_bare_module_of_torch_which_torch_leaves_as_it_is_is_said_aloud(compiled, tmp_path):
    toy = ToyEpochTrainer(settings(tmp_path, compile="default"))
    toy.run()
    assert compiled["calls"] == 0
    assert "torch does not compile its own class Linear by itself" in Path(toy.log_file).read_text()
    assert "does not compile" not in Path(EpochTrainer(settings(tmp_path / "own")).log_file).read_text()


def test_a_mode_that_torch_does_not_have_is_an_error_with_those_it_has(tmp_path):
    with pytest.raises(ConfigError, match=r"cfg\.trainer\.compile is 'fast'; it must be 'default', 'reduce-overhead'"):
        EpochTrainer(settings(tmp_path, compile="fast"))


def test_captured_steps_run_as_they_are_written_and_the_others_as_they_were_compiled(compiled, tmp_path):
    class Looks(EpochTrainer):
        def after_backward(self, *_args):
            seen.append({name: (each.detach(), each.grad) for name, each in self.endpoints.data_dict.items()})

    def run(name, **trainer):
        toy = Looks(settings(tmp_path / name, val_every="never", **trainer), rows_loader(8))
        toy.capture("head", every=2)
        toy.run()
        found = seen.copy()
        seen.clear()
        return found

    seen = []
    found = run("compiled", compile="default")
    assert [list(each) for each in found] == [[], ["head"], [], ["head"]]
    assert compiled["graphs"] == 1, "no hook makes torch compile again"
    assert compiled["calls"] == 2
    for one, other in zip(found, run("plain"), strict=True):
        assert all(map(torch.equal, one.get("head", ()), other.get("head", ())))
