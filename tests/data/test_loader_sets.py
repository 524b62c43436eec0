"""What may be registered as loaders, and what is refused at once."""

from collections import OrderedDict

import pytest
from torch.utils.data import DataLoader, IterableDataset

from tests.toys import Rows, ToyEpochTrainer, rows_loader, settings
from vision3d_engine import RegistrationError


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Rows(4))


def keeping_one_iterator():
    return DataLoader(Stream(), num_workers=1, persistent_workers=True)


def refused(folder, train_loader, val_loader):
    trainer = ToyEpochTrainer(settings(folder))
    with pytest.raises(RegistrationError) as caught:
        trainer.register_loader(train_loader, val_loader)
    return str(caught.value)


def test_a_dict_of_any_kind_is_several_sets(tmp_path):
    trainer = ToyEpochTrainer(settings(tmp_path))
    sets = OrderedDict(b=rows_loader(), a=rows_loader())
    trainer.register_loader(rows_loader(), sets)
    assert trainer.val_loader is sets


def test_an_empty_dict_of_sets_is_refused(tmp_path):
    said = refused(tmp_path, rows_loader(), {})
    assert said == "register_loader got an empty dict of validation loaders; it needs one at least: {'easy': loader}"


@pytest.mark.parametrize("name", [3, None, "", " ", "a/b", "/", b"easy", ("a", "b")])
def test_a_name_that_cannot_stand_before_a_key_is_refused(name, tmp_path):
    said = refused(tmp_path, rows_loader(), {"easy": rows_loader(), name: rows_loader()})
    assert f"a validation set named {name!r}; a name must be a text without '/'" in said


@pytest.mark.parametrize("loader", [None, 3, "path", b"path", Rows(4), {"deeper": []}])
def test_what_is_no_iterable_of_dicts_is_refused_by_the_name_of_its_set(loader, tmp_path):
    said = refused(tmp_path, rows_loader(), {"easy": rows_loader(), "hard": loader})
    assert "as validation loader 'hard'; it must be an iterable of dicts" in said


@pytest.mark.parametrize("loader", [3, "path", Rows(4)])
def test_a_single_loader_that_is_no_iterable_of_dicts_is_refused(loader, tmp_path):
    assert "as training loader; it must be an iterable of dicts" in refused(tmp_path, loader, rows_loader())
    assert "as validation loader; it must be an iterable of dicts" in refused(tmp_path, rows_loader(), loader)


def test_training_on_a_dict_of_loaders_is_refused(tmp_path):
    said = refused(tmp_path, {"easy": rows_loader()}, rows_loader())
    assert "a dict with the keys easy as training loader; only validation has sets by name" in said


@pytest.mark.parametrize("make", [lambda: iter(rows_loader()), lambda: ({} for _ in range(3)), keeping_one_iterator])
def test_one_iterator_for_two_sets_or_for_training_too_is_refused(make, tmp_path):
    one = make()
    kind = type(one).__name__
    said = refused(tmp_path, rows_loader(), {"easy": one, "mid": rows_loader(), "hard": one})
    assert f"the same {kind} for validation set 'easy' and validation set 'hard', which has one iterator only" in said
    assert f"the same {kind} for training and validation set 'easy'" in refused(tmp_path, one, {"easy": one})
    assert f"the same {kind} for training and validation, " in refused(tmp_path, one, one)


def test_one_loader_that_starts_anew_may_be_in_several_sets(tmp_path):
    shared = rows_loader(4)
    trainer = ToyEpochTrainer(settings(tmp_path), shared, {"easy": shared, "hard": shared})
    trainer.run()
    steps = [call[1:] for call in trainer.calls if call[0] == "val_step"]
    assert steps == [(1, 1), (1, 2), (1, 1), (1, 2)]
