"""The old import paths: every public name of the 2022 package's utils is there and does what it did."""

import importlib
import math
import re

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

from vision3d_engine import ConfigError, ResultError, SummaryBoard, Timer
from vision3d_engine.utils.dataloader import CycleLoader
from vision3d_engine.utils.optimizer import (
    WarmUpCosineAnnealingFunction,
    WarmUpExponentialAnnealingFunction,
    WarmUpLinearAnnealingFunction,
    build_warmup_lr_scheduler,
)
from vision3d_engine.utils.profiling import CpuRuntimeProfiler, CudaRuntimeProfiler, profile_cuda_runtime
from vision3d_engine.utils.summary_board import check_meter

NAMES = {
    "average_meter": "AverageMeter",
    "checkpoint": "CheckpointManager load_state_dict",
    "context_manager": "ContextManager clear_context_manager get_context_manager",
    "dataloader": "CycleLoader build_dataloader reset_seed_worker_init_fn",
    "distributed": "all_reduce_tensor all_reduce_tensors get_local_rank get_world_size is_distributed is_master "
    "master_only setup_distributed",
    "engine": "setup_engine",
    "io": "dump_pickle ensure_dir load_pickle readlines write_correspondences writelines",
    "logger": "Logger get_logger",
    "misc": "deprecated get_format_strings get_log_string get_print_format load_ext",
    "optimizer": "WarmUpCosineAnnealingFunction WarmUpExponentialAnnealingFunction WarmUpLinearAnnealingFunction "
    "build_optimizer build_scheduler build_warmup_cosine_lr_scheduler build_warmup_lr_scheduler",
    "parser": "add_argument add_argument_group get_parser parse_args",
    "profiling": "CpuRuntimeProfiler CudaRuntimeProfiler profile_cpu_runtime profile_cuda_runtime",
    "summary_board": "SummaryBoard check_meter",
    "tensor": "array_to_tensor move_to_cpu move_to_cuda tensor_to_array",
    "timer": "Timer",
}


@pytest.mark.parametrize("module", NAMES)
def test_every_public_name_of_2022_is_there(module):
    found = importlib.import_module(f"vision3d_engine.utils.{module}")
    assert all(callable(getattr(found, name)) for name in NAMES[module].split())


def warmup(n, warmup_steps, eta_init):
    """The published factor before the decay; n is the number of updates, plus one."""
    return eta_init + (1 - eta_init) / warmup_steps * n


@pytest.mark.parametrize(("warmup_steps", "total"), [(0, 9), (4, 9), (5, 5)])
@pytest.mark.parametrize("kind", [WarmUpCosineAnnealingFunction, WarmUpLinearAnnealingFunction])
def test_cosine_and_linear_annealing_follow_their_formulas(kind, warmup_steps, total):
    function = kind(total, warmup_steps, eta_init=0.2, eta_min=0.01)
    for last_step in range(-1, 14):
        n = last_step + 1
        if n < warmup_steps:
            expected = warmup(n, warmup_steps, 0.2)
        elif n >= total:
            expected = 0.01
        else:
            done = (n - warmup_steps) / (total - warmup_steps)
            part = 0.5 * (1 + math.cos(math.pi * done)) if kind is WarmUpCosineAnnealingFunction else 1 - done
            expected = 0.01 + (1 - 0.01) * part
        assert function(last_step) == pytest.approx(expected, abs=1e-15)


def test_exponential_annealing_follows_its_formula():
    function = WarmUpExponentialAnnealingFunction(3, 0.5, 2)
    expected = [warmup(n, 3, 0.1) if n < 3 else max(0.5 ** ((n - 3 + 1) // 2), 0.1) for n in range(15)]
    assert [function(n - 1) for n in range(15)] == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("annealing", ["cosine", "linear", "exponential"])
def test_a_warmup_schedule_is_built_by_the_name_of_its_annealing(annealing):
    scheduler = {"warmup_steps": 8, "total_steps": 24, "eta_init": 0.2, "eta_min": 0.01, "gamma": 0.5, "step_size": 2}
    functions = {
        "cosine": WarmUpCosineAnnealingFunction(12, 4, 0.2, 0.01),
        "linear": WarmUpLinearAnnealingFunction(12, 4, 0.2, 0.01),
        "exponential": WarmUpExponentialAnnealingFunction(4, 0.5, 2, 0.2, 0.01),
    }
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=3.0)
    built = build_warmup_lr_scheduler(optimizer, {"scheduler": scheduler, "trainer": {"grad_acc_steps": 2}}, annealing)
    for updates in range(16):
        assert optimizer.param_groups[0]["lr"] == 3.0 * functions[annealing](updates)
        optimizer.step()
        built.step()


def test_an_unknown_annealing_or_a_missing_number_is_refused():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ConfigError, match="annealing is 'cosin'; did you mean 'cosine'"):
        build_warmup_lr_scheduler(optimizer, {}, "cosin")
    with pytest.raises(ConfigError, match=r"total_steps is missing; the schedule 'Cosine' needs it"):
        build_warmup_lr_scheduler(optimizer, {})


def test_profilers_print_the_time_of_their_block(capsys):
    assert isinstance(profile_cuda_runtime("copy"), CudaRuntimeProfiler)
    with CpuRuntimeProfiler("load") as outer, CudaRuntimeProfiler("copy") as inner:
        assert (outer.description, inner.description) == ("load", "copy")
    printed = capsys.readouterr().out
    assert re.fullmatch(r"copy: \d+\.\d{3}s\nload: \d+\.\d{3}s\n", printed)


def test_a_cycle_loader_goes_on_with_the_next_pass_and_tells_the_sampler():
    sampler = DistributedSampler(range(5), num_replicas=1, rank=0, seed=3)
    cycle = CycleLoader(DataLoader(range(5), batch_size=2, sampler=sampler), epoch=6)
    found = [next(cycle).tolist() for _ in range(7)]
    expected = []
    for epoch in (7, 8, 9):
        sampler.set_epoch(epoch)
        order = list(sampler)
        expected += [order[i : i + 2] for i in range(0, 5, 2)]
    assert found == expected[:7]
    with pytest.raises(StopIteration):
        next(CycleLoader([], epoch=0))


def test_check_meter_refuses_a_key_without_a_meter():
    class Board(SummaryBoard):
        @check_meter
        def last(self, key):
            return self.meter_dict[key].get_records(last_n=1)[0]

    board = Board(["loss"])
    board.update("loss", 2.0)
    assert board.last("loss") == 2.0
    with pytest.raises(ResultError, match=r"no meter 'acc' \(meters: loss\)"):
        board.last("acc")


def test_a_registered_timer_shows_before_it_has_run():
    timer = Timer()
    timer.register_timer("data")
    assert timer.summary() == {"data": 0.0}
