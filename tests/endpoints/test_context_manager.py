import pytest
import torch

from tests.toys import ToyEpochTrainer, settings
from vision3d_engine import ContextManager, get_context_manager


def test_values_are_named_by_their_scopes():
    context = ContextManager()
    with context.enter_scope("encoder"):
        with context.enter_scope("block"):
            context.register("x", 1)
            assert context.scope == "encoder/block"
            assert context.get("x") == 1
        context.register("x", 2)
    assert context.scope is None
    assert context.data_dict == {"encoder/block/x": 1, "encoder/x": 2}
    assert context.get(full_name="encoder/x") == 2


def test_a_registered_tensor_keeps_its_gradient():
    context = ContextManager()
    x = torch.ones(2, requires_grad=True) * 3
    context.register("x", x)
    x.sum().backward()
    assert torch.equal(context.get("x").grad, torch.ones(2))


def test_an_unknown_name_is_none_with_a_warning_that_lists_the_known():
    context = ContextManager()
    context.register("a", 1)
    with pytest.warns(UserWarning, match=r"no value 'b' in the ContextManager \(registered: a\)"):
        assert context.get("b") is None


def test_the_shared_store_is_cleared_before_every_step(tmp_path):
    seen = []

    class Uses(ToyEpochTrainer):
        def train_step(self, epoch, iteration, data_dict):
            seen.append(list(get_context_manager().data_keys))
            get_context_manager().register(f"step{iteration}", data_dict["x"])
            return super().train_step(epoch, iteration, data_dict)

        def after_train_step(self, epoch, iteration, data_dict, output_dict, result_dict):
            assert get_context_manager().data_keys == [f"step{iteration}"]

    Uses(settings(tmp_path)).run()
    assert seen == [[], [], []]
