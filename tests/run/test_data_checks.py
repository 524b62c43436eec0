"""What processes ask of their loaders together."""

from types import SimpleNamespace

import pytest

from vision3d_engine import RegistrationError
from vision3d_engine.data.resumable_loader import ResumableLoader
from vision3d_engine.run.data_checks import check_alike, check_data


@pytest.mark.parametrize("others", [("easy",), ("hard", "easy"), (None,)])
def test_processes_with_other_sets_or_in_another_order_are_refused(others):
    world = SimpleNamespace(gather=lambda own: [own, own | {"validation_sets": others}])
    with pytest.raises(RegistrationError, match=r"different validation sets \(rank 0: easy, hard; rank 1: "):
        check_alike(world, validation_sets=("easy", "hard"), metrics=())


def test_a_set_whose_length_differs_between_the_processes_is_told_by_its_name():
    said, answers = [], iter([[(1, None)] * 2, [(1, None), (2, None)]])
    world = SimpleNamespace(gather=lambda own: next(answers))
    sets = {"hard": ResumableLoader([{}], name="validation loader 'hard'")}
    check_data(ResumableLoader([{}]), sets, world, said.append)
    assert said == ["the validation loader 'hard' (list) has different numbers of batches on the processes: 1, 2"]
