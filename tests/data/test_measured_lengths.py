"""Lengths that a data set does not state are measured once, and kept in a file."""

import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from tests.patience import PATIENCE_S
from vision3d_engine import DataError, build_dataloader, collate_packed
from vision3d_engine.core import messages

SIZES = [3, 9, 4, 6, 2, 8, 5]


class Scans(Dataset):
    """Counts how often samples are loaded in this process."""

    def __init__(self, sizes=SIZES):
        self.sizes, self.loaded = sizes, 0

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        self.loaded += 1
        return {"coord": torch.randn(self.sizes[index], 3), "index": index}


@pytest.fixture(autouse=True)
def said():
    found = []
    messages.say_by(lambda message, level: found.append((level, message)))
    yield found
    messages.say_by(None)


def batches_of(data, **options):
    options = {"num_workers": 0, "collate_fn": collate_packed} | options
    loader = build_dataloader(data, 4, batch_points=10, **options)
    return [[sample.index for sample in batch] for batch in loader.batch_sampler]


IN_ORDER = [[0], [1], [2, 3], [4, 5], [6]]


@pytest.mark.parametrize("workers", [0, 2])
def test_they_are_measured_by_loading_each_sample_once_which_is_said_with_a_hint(workers, said):
    data = Scans()
    assert batches_of(data, num_workers=workers) == IN_ORDER
    assert data.loaded == (0 if workers else 7)
    text = "\n".join(message for _, message in said)
    assert f"measuring the points of 7 samples once, with {workers} workers" in text
    assert "measured 37 points of 7 samples" in text
    assert "lengths_cache='lengths.npz') keeps what is measured" in text


def test_to_measure_moves_no_generator():
    state = torch.get_rng_state()
    build_dataloader(Scans(), 4, batch_points=10, num_workers=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_file_keeps_them_and_is_checked_by_three_samples(tmp_path, said):
    path = tmp_path / "new" / "lengths.npz"
    assert batches_of(Scans(), lengths_cache=path) == IN_ORDER
    data = Scans()
    assert batches_of(data, lengths_cache=path) == IN_ORDER
    assert data.loaded == 3
    assert not [message for level, message in said if level == "WARNING"]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (Scans(SIZES[:5]), "has 7 samples, the data set 5"),
        (Scans([5, *SIZES[1:]]), "says 3 points for sample 0, which has 5"),
        (type("Other", (Scans,), {})(), r"is of .*\.Scans, not of .*\.Other"),
    ],
)
def test_a_file_of_other_data_is_noticed_and_measured_again(data, what, tmp_path, said):
    path = tmp_path / "lengths.npz"
    batches_of(Scans(), lengths_cache=path)
    said.clear()
    batches_of(data, lengths_cache=path)
    ((_, warning),) = [each for each in said if each[0] == "WARNING"]
    assert re.search(what + ": they are measured again", warning)
    said.clear()
    batches_of(data, lengths_cache=path)
    assert not said


def _stored(path, **entries):
    with path.open("wb") as file:
        np.savez(file, **{"kind": np.array(f"{Scans.__module__}.Scans"), "lengths": np.array(SIZES)} | entries)


def _torn_in_the_midst(path):
    _stored(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _with_other_numbers(path):
    _stored(path)
    data = path.read_bytes()
    path.write_bytes(data.replace(np.array(SIZES).tobytes(), np.array(SIZES[::-1]).tobytes()))


def _with_an_unknown_compression(path):
    _stored(path)
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 10] = 7
    path.write_bytes(data)


def _an_array_alone(path):
    with path.open("wb") as file:
        np.save(file, np.array(SIZES))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"no file of numpy"),
        lambda path: path.write_bytes(b""),
        _an_array_alone,
        lambda path: _stored(path, lengths=np.array(3)),
        lambda path: _stored(path, lengths=np.array([SIZES, SIZES]).T),
        lambda path: _stored(path, lengths=np.array(SIZES, dtype=np.float64)),
        lambda path: _stored(path, lengths=-np.array(SIZES)),
        _torn_in_the_midst,
        _with_other_numbers,
        _with_an_unknown_compression,
    ],
)
def test_a_file_that_cannot_be_read_as_it_was_written_is_measured_again(damage, tmp_path, said):
    path = tmp_path / "lengths.npz"
    damage(path)
    assert batches_of(Scans(), lengths_cache=path) == IN_ORDER
    assert said[0][0] == "WARNING"
    assert f"'{path}' cannot be read" in said[0][1]
    with np.load(path) as file:
        assert file["lengths"].tolist() == SIZES


def test_points_may_be_counted_by_a_function_also_where_lengths_are_stated():
    data = Scans()
    data.lengths = [10] * 7
    assert batches_of(data) == [[index] for index in range(7)]
    assert batches_of(data, points_of=lambda sample: len(sample["coord"])) == IN_ORDER


class Pairs(Scans):
    def __getitem__(self, index):
        levels = [torch.zeros(self.sizes[index], 3), torch.zeros(1, 3)]
        return {"ref": {"points": levels}, "src": {"points": torch.zeros(1, 3)}, "pose": torch.eye(4)}


def test_clouds_in_dicts_count_together_and_levels_of_detail_by_the_first():
    assert batches_of(Pairs([4, 4, 6])) == [[0, 1], [2]]


class Labels(Scans):
    def __getitem__(self, index):
        return {"label": index}


def test_a_sample_without_a_cloud_is_an_error_that_names_its_keys():
    with pytest.raises(DataError, match=r"sample 0 of Labels has no cloud \(it has \['label'\]\).*points_of=lambda"):
        batches_of(Labels())


def test_of_several_processes_one_measures_and_the_others_wait(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import sys, time
        import torch
        from torch.utils.data import Dataset
        from vision3d_engine import build_dataloader, collate_packed

        class Scans(Dataset):
            def __len__(self):
                return 20

            def __getitem__(self, index):
                open(sys.argv[2], "a").write(f"{index}\\n")
                time.sleep(0.05)
                return {"points": torch.zeros(index + 1, 3)}

        build_dataloader(Scans(), 4, num_workers=0, batch_points=40, lengths_cache=sys.argv[1])
        """)
    )
    command = [sys.executable, str(script), str(tmp_path / "lengths.npz"), str(tmp_path / "loaded")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    errors = [process.communicate(timeout=PATIENCE_S)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    assert sum("measuring the points of 20 samples" in error for error in errors) == 1
    assert len((tmp_path / "loaded").read_text().splitlines()) == 20 + 2 * 3
