"""One model in several ways of being parallel, on two and three processes, and their checkpoints."""

import os
import re
import signal
from pathlib import Path

import pytest
import torch

from tests.stories.launching import outputs_of, start_ranks
from tests.stories.parallel_server import Tester, Trainer, state_of
from tests.stories.test_worlds import World
from vision3d_engine.checkpoint.files import read_checkpoint
from vision3d_engine.commands import main

SERVER = Path(__file__).parent / "parallel_server.py"
SHARDED = {"parallel": "fsdp2"}


@pytest.fixture(scope="module")
def worlds():
    """Processes by their number, started when they are first asked for."""
    found = {}

    def world(size):
        found[size] = found.get(size) or World(size, SERVER)
        return found[size]

    yield world
    for each in found.values():
        each.close()


@pytest.fixture(scope="module")
def saved(worlds, tmp_path_factory):
    """The folder of a run that two processes have sharded, and what each of them ended with."""
    folder = tmp_path_factory.mktemp("sharded")
    return folder, worlds(2).run(folder=str(folder), ema=True, trainer={**SHARDED, "max_epoch": 2})


def distance(a, b):
    """The largest difference of two nests of numbers that agree in all else."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return max((distance(a[key], b[key]) for key in a), default=0)
    if isinstance(a, list):
        return max((distance(x, y) for x, y in zip(a, b, strict=True)), default=0)
    assert isinstance(a, float) or a == b
    return abs(a - b) if isinstance(a, float) else 0


def names(folder):
    return sorted(path.name for path in (Path(folder) / "checkpoints").iterdir())


# ----------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    ("blocks", "steps"),
    [({"fsdp_blocks": ["Block"]}, 3), ({"fsdp_min_params": 20}, 1), ({"fsdp_min_params": 10**6, "debug": True}, 2)],
)
def test_a_sharded_model_learns_what_a_whole_one_learns(worlds, tmp_path, size, blocks, steps):
    """13 unequal batches on 2 or 3 processes, weighted, clipped, with dropout and Adam: to 1e-12 in float64.

    Sums (of gradients over processes, of norms over shards) are taken in another order, and nothing else differs.
    """
    case = {"count": 38, "batch_size": 3, "clip": 0.5, "ema": True, "weighted": True}
    whole = worlds(size).run(folder=str(tmp_path / "ddp"), **case, trainer={"grad_acc_steps": steps, "max_epoch": 2})
    trainer = {"grad_acc_steps": steps, "max_epoch": 2, **SHARDED, **blocks}
    shared = worlds(size).run(folder=str(tmp_path / "fsdp"), **case, trainer=trainer)
    trained = {key for key in whole[0]["model"] if "running" not in key}
    assert all(result["model"][key] == whole[0]["model"][key] for result in whole for key in trained)
    for result in shared:
        assert result["spread"]
        assert distance(whole[0]["summary"], result["summary"]) <= 1e-12
        for part in ("model", "optimizer", "ema"):
            own = {key: value for key, value in result[part].items() if "running" not in key}
            assert distance({key: whole[0][part][key] for key in own}, own) <= 1e-12
    assert distance(whole[0]["model"], shared[0]["model"]) <= 1e-12, "running means are those of the main process"


def test_frozen_parameters_are_spread_and_stay_as_they_are(worlds, tmp_path):
    whole = worlds(2).run(folder=str(tmp_path / "ddp"), frozen=["first", "blocks"])
    shared = worlds(2).run(folder=str(tmp_path / "fsdp"), frozen=["first", "blocks"], trainer=SHARDED)
    assert distance(whole[0]["model"], shared[0]["model"]) <= 1e-12
    assert whole[0]["model"]["first.weight"] == shared[0]["model"]["first.weight"]


@pytest.mark.parametrize("count", [1, 3, 5, 8])
def test_sharded_validation_counts_every_sample_once_and_never_hangs(worlds, tmp_path, count):
    """Also where a process has no batch; to 1e-12, since the weights are those of the sharded training."""
    whole = worlds(3).run(folder=str(tmp_path / "ddp"), val_count=count)
    shared = worlds(3).run(folder=str(tmp_path / "fsdp"), val_count=count, trainer=SHARDED)
    assert all(distance(whole[0]["summary"], result["summary"]) <= 1e-12 for result in shared)


def test_mixed_precision_computes_in_16_bits_and_hands_out_32(worlds, tmp_path):
    """Weights stay float32 and close to those of float32 training: bfloat16 rounds to 1 in 256."""
    exact = worlds(2).run(folder=str(tmp_path / "a"), single=True, trainer=SHARDED)
    policy = {"fsdp_param_dtype": "bf16", "fsdp_reduce_dtype": "fp32"}
    mixed = worlds(2).run(folder=str(tmp_path / "b"), single=True, trainer={**SHARDED, **policy})
    assert mixed[0]["dtypes"] == ["torch.float64"]  # float32 minus the float64 target
    assert 0 < distance(exact[0]["model"]["first.weight"], mixed[0]["model"]["first.weight"]) < 0.05


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    "setting",
    [{"static_graph": True}, {"gradient_as_bucket_view": True}, {"find_unused_parameters": True}],
    ids=lambda setting: next(iter(setting)),
)
def test_the_settings_of_ddp_change_no_update(worlds, tmp_path, size, setting):
    """To 1e-12: buckets, and with them the order of sums, may differ."""
    for steps in (1, 2):
        plain = worlds(size).run(folder=str(tmp_path / f"a{steps}"), trainer={"grad_acc_steps": steps})
        other = worlds(size).run(folder=str(tmp_path / f"b{steps}"), trainer={"grad_acc_steps": steps, **setting})
        assert distance(plain[0]["model"], other[0]["model"]) <= 1e-12


def test_compressed_gradients_are_those_of_16_bits(worlds, tmp_path):
    plain = worlds(2).run(folder=str(tmp_path / "a"), single=True)
    other = worlds(2).run(folder=str(tmp_path / "b"), single=True, trainer={"gradient_compression": "fp16"})
    assert 0 < distance(plain[0]["model"]["first.weight"], other[0]["model"]["first.weight"]) < 0.02
    assert other[0]["model"]["first.weight"] == other[1]["model"]["first.weight"]


# ----------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (
            {"unused": ["spare"]},
            "ResultError: .*does not depend on spare.weight, spare.bias,.*find_unused_parameters: t",
        ),
        ({"unused": ["rare"], "sometimes": ["rare"]}, "ResultError: .*depend on rare.weight, rare.bias, so"),
        ({"trainer": {"parallel": "none"}}, "ConfigError: .*'none', but 2 processes were started"),
        ({"trainer": {"sync_batchnorm": True}}, "ConfigError: .*this run is on the CPU"),
        ({"trainer": {**SHARDED, "sync_batchnorm": True}}, "ConfigError: .*this run is on the CPU"),
        pytest.param(
            {"trainer": {"gradient_compression": "bf16"}},
            "ConfigError: .*'bf16', which this machine cannot exchange",
            marks=pytest.mark.skipif(torch.version.cuda is not None, reason="a CUDA build of torch does not refuse it"),
        ),
        ({"trainer": {**SHARDED, "static_graph": True}}, "ConfigError: .*'fsdp2', where trainer.static_graph has no"),
        ({"trainer": {**SHARDED, "fsdp_blocks": ["Blok"]}}, r"ConfigError: .*'Blok'.*did you mean 'Block'\?"),
    ],
)
def test_what_cannot_be_is_said_on_every_process(worlds, tmp_path, case, message):
    for result in worlds(2).run(folder=str(tmp_path), **case):
        assert re.search(message, result["error"]), result


@pytest.mark.parametrize(
    ("epochs", "message"), [(1, "not finite are last.weight"), (2, "loss nan.*last.weight|5 more")]
)
def test_sharded_weights_that_are_not_finite_are_named_everywhere_and_never_saved(worlds, tmp_path, epochs, message):
    """A weight breaks in the last update of the first epoch, when the loss has been finite all along."""
    found = worlds(2).run(folder=str(tmp_path), break_at=6, trainer={**SHARDED, "max_epoch": epochs})
    assert all(re.search(f"NonFiniteError: .*({message})", result["error"]) for result in found)
    assert names(tmp_path) == []


# ----------------------------------------------------------------------------------------------- checkpoints


def test_the_files_of_a_sharded_run_point_to_their_folders(saved):
    folder, _ = saved
    assert [name for name in names(folder) if name.endswith(".pth")] == [
        "best_mae.pth",
        "checkpoint.prev.pth",
        "checkpoint.pth",
        "epoch-1.pth",
        "epoch-2.pth",
    ]
    pointers = set()
    for path in (folder / "checkpoints").glob("*.pth"):
        state = torch.load(path, weights_only=True)
        assert state["model"]["first.weight"].is_meta
        pointers.add(state["shards"]["folder"])
    assert pointers == {name for name in names(folder) if name.endswith(".dcp")}


@pytest.mark.parametrize(("size", "parallel"), [(1, "fsdp2"), (2, "fsdp2"), (3, "fsdp2"), (2, "ddp")])
def test_what_two_have_saved_any_number_reads_to_the_same_bits(worlds, saved, size, parallel, tmp_path):
    folder, ended = saved
    trainer = {"parallel": parallel, "allow_changed_data": size == 3}
    case = {"ema": True, "trainer": trainer, "batch_size": {1: 4, 2: 2, 3: 2}[size]}
    path = str(folder / "checkpoints" / "checkpoint.pth")
    if size > 1:
        found = worlds(size).run(kind="load", name=path, folder=str(tmp_path), **case)
    else:
        trainer = Trainer(str(tmp_path), case)
        trainer.load(path)
        found = [state_of(trainer)]
    expected = {part: ended[0][part] for part in ("model", "optimizer", "ema")}
    assert all(result == expected for result in found)


def test_an_ordinary_checkpoint_goes_on_in_shards(worlds, tmp_path):
    whole = worlds(2).run(folder=str(tmp_path), trainer={"max_epoch": 1})
    path = str(tmp_path / "checkpoints" / "checkpoint.pth")
    found = worlds(2).run(kind="load", name=path, folder=str(tmp_path / "b"), trainer=SHARDED)
    assert all(result[part] == whole[0][part] for result in found for part in ("model", "optimizer"))


def test_retention_removes_folders_with_their_files(worlds, tmp_path):
    worlds(2).run(folder=str(tmp_path), trainer={**SHARDED, "max_epoch": 3, "save_latest_n_models": 1})
    kept = [name for name in names(tmp_path) if name.startswith("epoch")]
    assert kept == ["epoch-3.pth", "epoch-3@18.dcp"]
    assert sum(name.startswith("checkpoint@") for name in names(tmp_path)) == 2
    assert sum(name.startswith("best_mae@") for name in names(tmp_path)) == 1


def test_a_damaged_shard_is_noticed_and_the_checkpoint_before_it_used(worlds, tmp_path):
    case = {"folder": str(tmp_path), "trainer": {**SHARDED, "max_epoch": 2}}
    worlds(2).run(**case)
    state = torch.load(tmp_path / "checkpoints" / "checkpoint.pth", weights_only=True)
    file = tmp_path / "checkpoints" / state["shards"]["folder"] / "__1_0.distcp"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    case["trainer"] |= {"resume": True, "max_epoch": 3}
    found = worlds(2).run(**case)
    assert all("error" not in result for result in found)
    assert "checkpoint.pth.damaged" in names(tmp_path)
    straight = worlds(2).run(folder=str(tmp_path / "b"), trainer={**SHARDED, "max_epoch": 3})
    assert found == straight


@pytest.mark.parametrize(
    ("number", "at"), [(signal.SIGKILL, 15), pytest.param(signal.SIGTERM, 9, marks=pytest.mark.slow)]
)
def test_a_sharded_run_that_is_killed_and_resumed_ends_with_the_same_bits(worlds, tmp_path, number, at):
    """One of two processes gets the signal in the midst of an epoch and of an accumulation."""
    trainer = {**SHARDED, "max_epoch": 3, "grad_acc_steps": 2, "save_every": "2 iterations"}
    case = {"ema": True, "clip": 0.5, "trainer": trainer}
    straight = worlds(2).run(folder=str(tmp_path / "a"), **case)
    dying = {"folder": str(tmp_path / "b"), "signal": (int(number), at), **case}
    code = f"from tests.stories.parallel_server import run\nrun({dying!r})"
    script = tmp_path / "script.py"
    script.write_text(code)
    path = os.pathsep.join([str(SERVER.parent.parent.parent), os.environ.get("PYTHONPATH", "")])
    assert all(code for code, _, _ in outputs_of(start_ranks(script, PYTHONPATH=path)))
    assert torch.load(tmp_path / "b" / "checkpoints" / "checkpoint.pth", weights_only=True)["progress"]["is_open"]
    case["trainer"] = {**trainer, "resume": True}
    resumed = worlds(2).run(folder=str(tmp_path / "b"), **case)
    for part in ("model", "optimizer", "ema", "summary"):
        assert [result[part] for result in resumed] == [result[part] for result in straight]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_disk_that_is_full_for_one_process_is_told_on_all_and_leaves_nothing_behind(worlds, tmp_path, rank):
    found = worlds(2).run(folder=str(tmp_path), full=rank, trainer={**SHARDED, "async_save": False})
    assert all(re.search("FolderError: cannot write .*No space left on device", result["error"]) for result in found)
    assert names(tmp_path) == []


@pytest.mark.parametrize("async_save", [True, False])
def test_what_the_main_process_could_not_write_counts_on_no_process(worlds, tmp_path, async_save):
    """The best model of epoch 2 has no file, so that of epoch 3 is saved, and no shards are left without a file."""
    case = {"scores": [0.5, 0.1, 0.3], "unwritable": (2, "best_mae.pth"), "folder": str(tmp_path)}
    found = worlds(2).run(trainer={**SHARDED, "max_epoch": 3, "async_save": async_save}, **case)
    assert all("error" not in result for result in found), found
    assert [name for name in names(tmp_path) if name.startswith("best")] == ["best_mae.pth", "best_mae@18.dcp"]
    state = read_checkpoint(tmp_path / "checkpoints" / "checkpoint.pth")
    assert state["ckpt_manager"]["best_scores"]["mae"] == {"score": 0.3, "largest": False, "epoch": 3}


def test_a_file_that_the_main_process_could_not_write_is_an_error_on_all(worlds, tmp_path):
    case = {"unwritable": (2, "checkpoint.pth"), "folder": str(tmp_path)}
    found = worlds(2).run(trainer={**SHARDED, "max_epoch": 2}, **case)
    assert all(re.search("FolderError: cannot write .*No space left on device", result["error"]) for result in found)
    states = [torch.load(path, weights_only=True) for path in (tmp_path / "checkpoints").glob("checkpoint*.pth")]
    pointers = {state["shards"]["folder"] for state in states}
    assert pointers == {name for name in names(tmp_path) if name.startswith("checkpoint@")}


def test_a_used_folder_is_refused_and_overwritten_with_its_shards(worlds, tmp_path):
    worlds(2).run(folder=str(tmp_path), trainer={**SHARDED, "max_epoch": 2})
    worlds(2).run(folder=str(tmp_path), trainer={**SHARDED, "overwrite": True})
    assert [name for name in names(tmp_path) if name.startswith("epoch")] == ["epoch-1.pth", "epoch-1@6.dcp"]


# ----------------------------------------------------------------------------------------------- one ordinary file


def test_consolidate_makes_one_file_that_loads_and_resumes_on_one_process(worlds, saved, tmp_path, capsys):
    folder, ended = saved
    target = tmp_path / "checkpoints" / "checkpoint.pth"
    main(["consolidate", str(folder), str(target)])
    assert f"to {target}" in capsys.readouterr().out
    state = torch.load(target, weights_only=True)
    assert "shards" not in state
    assert {key: value.tolist() for key, value in state["model"].items()} == ended[0]["model"]
    case = {"ema": True, "batch_size": 4, "trainer": {"resume": True, "max_epoch": 2}}
    trainer = Trainer(str(tmp_path), case)
    trainer._run._resuming.start()
    assert state_of(trainer) == {part: ended[0][part] for part in ("model", "optimizer", "ema")}


def test_a_file_a_folder_of_shards_and_a_run_can_be_consolidated(saved, tmp_path):
    folder, _ = saved
    shards = next((folder / "checkpoints").glob("epoch-1@*.dcp"))
    for number, source in enumerate([folder / "checkpoints" / "epoch-1.pth", shards]):
        main(["consolidate", str(source), str(tmp_path / f"{number}.pth")])
    one, two = (read_checkpoint(tmp_path / f"{number}.pth") for number in (0, 1))
    moment = {"epoch": 1, "total_steps": 6, "updates": 6, "samples": 24}
    assert one["metadata"] == two["metadata"] == moment
    assert all(torch.equal(one["model"][key], two["model"][key]) for key in one["model"])
    with pytest.raises(SystemExit, match=r"error: .*nothing to consolidate"):
        main(["consolidate", str(tmp_path), str(tmp_path / "x.pth")])


def test_testers_weights_and_commands_read_a_sharded_file_on_one_process(saved, tmp_path, capsys):
    folder, ended = saved
    tester = Tester(str(folder), "epoch-2.pth")
    tester.run()
    assert tester.summary["mae"] == pytest.approx(ended[0]["summary"]["mae"], rel=1e-12)
    trainer = Trainer(str(tmp_path), {})
    trainer.load_weights(folder / "checkpoints" / "best_mae.pth", strict=True)
    main(["inspect", str(folder / "checkpoints" / "epoch-2.pth")])
    assert "first.weight (5, 3) float64" in capsys.readouterr().out
    main(["export", str(folder / "checkpoints" / "epoch-2.pth"), str(tmp_path / "model.safetensors")])


def test_weights_of_a_sharded_file_start_another_sharded_run(worlds, saved, tmp_path):
    folder, ended = saved
    path = str(folder / "checkpoints" / "epoch-2.pth")
    found = worlds(3).run(kind="weights", name=path, folder=str(tmp_path), trainer=SHARDED)
    assert all(result["model"] == ended[0]["model"] for result in found)


# ----------------------------------------------------------------------------------------------- registered states


@pytest.mark.parametrize("parallel", [{}, SHARDED], ids=["ddp", "fsdp2"])
def test_states_that_differ_between_processes_are_named_once_at_the_first_save(worlds, tmp_path, parallel):
    case = {"generators": {"own noise": 1, "common noise": 0}, "ema": True}
    worlds(2).run(folder=str(tmp_path), **case, trainer={"max_epoch": 2, **parallel})
    lines = [line for path in tmp_path.rglob("*.log") for line in path.read_text().splitlines()]
    (told,) = [line for line in lines if "differ between the processes" in line]
    assert "WARNING" in told
    assert "differ between the processes: own noise. The main one's is saved" in told
    assert "a common seed" in told
