import threading

import pytest
import torch

from tests.patience import PATIENCE_S
from tests.toys import ToyBatchTester, ToyEpochTrainer, save_weights, settings
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


def test_an_unknown_name_comes_with_the_nearest():
    context = ContextManager()
    context.register("features", 1)
    with pytest.warns(UserWarning, match="no value 'feature' in the ContextManager; did you mean 'features'"):
        assert context.get("feature") is None


def test_the_full_name_of_a_name_has_the_scopes():
    context = ContextManager()
    with context.enter_scope("encoder"):
        assert context.full_name("x") == "encoder/x"


def test_tensors_in_a_nest_keep_their_gradients_unless_told_otherwise():
    context = ContextManager()
    x, y = (torch.ones(2, requires_grad=True) * 3 for _ in range(2))
    context.register("pair", {"x": [x], "number": 3})
    context.register("y", y, retain_grad=False)
    (x * y).sum().backward()
    assert torch.equal(context.get("pair")["x"][0].grad, y)
    assert not y.retains_grad


def test_trainers_and_testers_have_a_store_each_which_is_reached_by_its_function_while_they_run(tmp_path):
    class Looks(ToyEpochTrainer):
        def val_step(self, *args):
            assert get_context_manager() is self.endpoints
            return super().val_step(*args)

    class LooksToo(ToyBatchTester):
        def test_step(self, *args):
            assert get_context_manager() is self.endpoints
            return super().test_step(*args)

    save_weights(tmp_path / "tested")
    first, second = Looks(settings(tmp_path / "a")), Looks(settings(tmp_path / "b"))
    tester = LooksToo(settings(tmp_path / "tested"))
    assert len({id(each.endpoints) for each in (first, second, tester)}) == 3
    for each in (first, second, tester):
        each.run()


def test_a_store_that_a_script_has_asked_for_before_is_that_of_its_trainer(tmp_path):
    def in_a_thread_of_its_own():
        kept = get_context_manager()
        found.append(ToyEpochTrainer(settings(tmp_path)).endpoints is kept)

    found = []
    run_in_thread(in_a_thread_of_its_own)
    assert found == [True]


def test_two_trainers_that_run_at_the_same_time_do_not_mix(tmp_path):
    barrier = threading.Barrier(2)

    class Meets(ToyEpochTrainer):
        def train_step(self, epoch, iteration, data_dict):
            get_context_manager().register(self.name, iteration)
            barrier.wait(PATIENCE_S)
            assert self.endpoints.data_dict == {self.name: iteration}
            barrier.wait(PATIENCE_S)
            return super().train_step(epoch, iteration, data_dict)

    trainers = [Meets(settings(tmp_path / name, val_every="never")) for name in ("a", "b")]
    threads = []
    for trainer, name in zip(trainers, ("a", "b"), strict=True):
        trainer.name = name
        threads.append(threading.Thread(target=trainer.run))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert [trainer.total_steps for trainer in trainers] == [3, 3]


def test_replicas_in_threads_of_their_own_have_stores_of_their_own():
    def replica(number):
        get_context_manager().register("features", number)
        barrier.wait(PATIENCE_S)
        found[number] = get_context_manager().get("features")

    barrier, found = threading.Barrier(2), {}
    threads = [threading.Thread(target=replica, args=(number,)) for number in range(2)]
    get_context_manager().clear()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert found == {0: 0, 1: 1}
    assert get_context_manager().data_keys == []


def test_a_backward_hook_may_register_in_the_store_of_its_forward_pass():
    context = ContextManager()
    x = torch.ones(2, requires_grad=True) * 3
    x.register_hook(lambda gradient: context.register("gradient", gradient))
    x.sum().backward()
    assert torch.equal(context.get("gradient"), torch.ones(2))


def test_nothing_is_kept_from_the_last_step_of_a_pass(tmp_path):
    class Registers(ToyEpochTrainer):
        def train_step(self, epoch, iteration, data_dict):
            self.endpoints.register("x", data_dict["x"])
            return super().train_step(epoch, iteration, data_dict)

        def after_train_epoch(self, epoch, summary_dict):
            assert self.endpoints.data_keys == []

    Registers(settings(tmp_path)).run()


def run_in_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    thread.join(PATIENCE_S)
