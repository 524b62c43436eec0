"""The commands that look into checkpoints."""

import pytest
import torch
from safetensors.torch import load_file

from tests.toys import ToyEpochTrainer, settings
from vision3d_engine.commands import main


@pytest.fixture
def checkpoint(tmp_path):
    toy = ToyEpochTrainer(settings(tmp_path))
    toy.run()
    return tmp_path / "checkpoints" / "checkpoint.pth"


def test_export_writes_the_weights_as_safetensors(checkpoint, tmp_path, capsys):
    main(["export", str(checkpoint), str(tmp_path / "out" / "model.safetensors")])
    expected = torch.load(checkpoint, weights_only=True)["model"]
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert "wrote 2 tensors to" in capsys.readouterr().out


def test_inspect_says_what_is_in_a_checkpoint(checkpoint, capsys):
    main(["inspect", str(checkpoint)])
    text = capsys.readouterr().out
    for part in ("epoch: 1", "total_steps: 3", "parts: metadata, model, optimizer", "2 tensors, 4 numbers"):
        assert part in text
    assert "  weight (1, 3) float64" in text


@pytest.mark.parametrize("words", [["inspect", "none.pth"], ["export", "none.pth", "out.safetensors"]])
def test_a_missing_file_is_a_message(words):
    with pytest.raises(SystemExit, match=r"error: .*none\.pth"):
        main(words)


def test_a_file_without_weights_is_a_message(tmp_path):
    torch.save({"metadata": {"epoch": 1}}, tmp_path / "a.pth")
    with pytest.raises(SystemExit, match=r"error: .*a\.pth' holds no weights \(its keys: metadata\)"):
        main(["inspect", str(tmp_path / "a.pth")])
