"""What the curve of the training holds."""

import json

import pytest

from tests.toys import ToyEpochTrainer, ToyIterTrainer, rows_loader, settings


def curve_of(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["phase"] == "train"]


@pytest.mark.parametrize("kind", [ToyEpochTrainer, ToyIterTrainer])
@pytest.mark.parametrize(("log_steps", "steps"), [(100, [5, 10]), (2, [2, 4, 5, 7, 9, 10]), (5, [5, 10])])
def test_the_last_steps_of_every_epoch_are_in_the_curve(tmp_path, kind, log_steps, steps):
    toy = kind(settings(tmp_path, max_epoch=2, log_steps=log_steps), rows_loader(10, batch_size=2))
    losses = {}
    toy.after_train_step = lambda e, i, d, o, r: losses.update({toy.total_steps: r["loss"].item()})
    toy.run()
    rows = curve_of(tmp_path)
    assert [row["step"] for row in rows] == steps
    assert [row["iteration"] for row in rows] == [(step - 1) % 5 + 1 for step in steps]
    begins = [0, *steps]
    for begin, row in zip(begins, rows, strict=False):
        own = [losses[step] for step in range(begin + 1, row["step"] + 1)]
        assert row["values"]["loss"] == pytest.approx(sum(own) / len(own))
