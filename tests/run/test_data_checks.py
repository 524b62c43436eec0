"""What processes ask of their loaders together."""

from types import SimpleNamespace

import pytest

from vision3d_engine import RegistrationError
from vision3d_engine.data.resumable_loader import ResumableLoader
from vision3d_engine.run.data_checks import check_data


def loaders(*names):
    return {name: ResumableLoader([{}]) for name in names}


@pytest.mark.parametrize("others", [("easy",), ("hard", "easy"), (None,)])
def test_processes_with_other_sets_or_in_another_order_are_refused(others):
    world = SimpleNamespace(gather=lambda own: [own, others])
    with pytest.raises(RegistrationError, match=r"different validation sets \(rank 0: easy, hard; rank 1: "):
        check_data(ResumableLoader([{}]), loaders("easy", "hard"), world, print)


def test_a_set_whose_length_differs_between_the_processes_is_told_by_its_name():
    said, answers = [], iter([[("hard",)] * 2, [(1, None)] * 2, [(1, None), (2, None)]])
    world = SimpleNamespace(gather=lambda own: next(answers))
    sets = {"hard": ResumableLoader([{}], name="validation loader 'hard'")}
    check_data(ResumableLoader([{}]), sets, world, said.append)
    assert said == ["the validation loader 'hard' (list) has different numbers of batches on the processes: 1, 2"]
