"""The first difference between two runs."""

from vision3d_engine.verification.comparison import first_difference, lost_attributes
from vision3d_engine.verification.places import Note, Place


def note(moment, epoch=0, iteration=0, step=0, **parts):
    return Note(Place(moment, epoch, iteration), {"step": step, "attributes": {}, **parts})


def run(*losses, calls=0):
    """An epoch with a step for each loss, which is in its notes."""
    steps = [
        note(
            "after_train_step",
            1,
            i,
            i,
            results={"loss": loss},
            weights={"a": loss},
            attributes={"calls": str(calls + i)},
        )
        for i, loss in enumerate(losses, 1)
    ]
    return [note("before_train"), note("before_train_epoch", 1, 0, 0, random={"torch": "#1"}), *steps]


def test_a_run_is_the_same_as_itself():
    assert first_difference(run("1.0", "2.0"), run("1.0", "2.0")) is None


def test_hooks_that_a_resume_calls_again_to_open_its_epoch_are_not_compared():
    straight = run("1.0", "2.0", "3.0")
    opening = [note("before_train", step=2), note("before_train_epoch", 1, 0, 2, random={"torch": "#2"})]
    assert first_difference(straight, [*opening, straight[-1]]) is None


def test_of_several_validations_within_an_epoch_those_at_the_same_step_are_compared():
    validations = [note("val_step", 1, 1, step, results={"mae": f"{step}.0"}) for step in (2, 4, 6)]
    assert first_difference(validations, validations[1:]) is None
    assert first_difference(validations, validations[2:]) is None


def test_causes_are_named_before_effects():
    difference = first_difference(run("1.0", "2.0"), run("1.0", "2.5"))
    assert difference is not None
    assert str(difference) == "at after_train_step, epoch 1, iteration 2: results differ: loss (was 2.0, is 2.5)"
    assert difference.part == "results"
    assert "register_state" in difference.cause


def test_hashes_are_not_shown_and_many_names_are_counted():
    left = note("after_train_epoch", 1, weights=dict.fromkeys("abcde", "#1"))
    right = note("after_train_epoch", 1, weights=dict.fromkeys("abcde", "#2"))
    assert "weights differ: a, b, c and 2 more" in str(first_difference([left], [right]))


def test_the_samples_of_a_batch_that_differ_are_named():
    left, right = (note("before_train_step", 1, 1, batch={"['x']": ["#1", "#2", last]}) for last in ("#3", "#4"))
    assert str(first_difference([left], [right])).endswith("the batch differs in ['x'], samples [2]")


def test_a_run_that_takes_another_way_or_ends_too_soon_differs():
    straight = run("1.0", "2.0")
    assert "comes to after_train_step, epoch 1, iteration 2 (step 2), the other to its end" in str(
        first_difference(straight, straight[:-1])
    )
    assert "one run comes to before_train (step 0), the other to its end" in str(first_difference(straight, []))


def test_what_is_lost_is_what_differs_at_the_end_but_not_what_differs_without_a_resume():
    straight, resumed = run("1.0", "2.0"), run("1.0", "2.0", calls=5)
    assert lost_attributes(straight, resumed) == {"calls": "calls (was 2, is 7)"}
    assert lost_attributes(straight, resumed, until=Place("after_train_step", 1, 1)) == {"calls": "calls (was 1, is 6)"}
    assert lost_attributes(straight, resumed, ignored={"calls": ""}) == {}
    several = [note("val_step", 1, 1, step, attributes={"calls": str(step)}) for step in (2, 4)]
    assert lost_attributes(several, several[:1]) == {}
