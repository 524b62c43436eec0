"""A run that goes on in the same process after something has failed."""

import pytest

from tests.toys import ToyEpochTrainer, ToyIterTrainer, settings


@pytest.mark.parametrize("kind", [ToyEpochTrainer, ToyIterTrainer])
@pytest.mark.parametrize("moment", ["before_val_epoch", "after_val_step", "after_train_epoch"])
def test_after_a_failure_behind_the_training_its_means_are_still_there(kind, moment, tmp_path):
    straight = kind(settings(tmp_path / "straight"))
    straight.after_train_epoch = lambda epoch, summary_dict: expected.append(dict(summary_dict))
    expected = []
    straight.run()

    found, failures = [], iter([ValueError("boom")])

    class Fails(kind):
        def after_train_epoch(self, epoch, summary_dict):
            found.append(dict(summary_dict))

    def fail_once(*_):
        for failure in failures:
            raise failure

    toy = Fails(settings(tmp_path / "fails"))
    toy.add_hook(type("Once", (), {moment: staticmethod(fail_once)})())
    with pytest.raises(ValueError, match="boom"):
        toy.run()
    toy.run()
    assert found == expected * 2
    assert toy.total_steps == straight.total_steps
