"""Which places of a run are killed."""

from vision3d_engine.verification.places import Note, Place, choose

EPOCH = ("before_train_epoch", "before_train_step", "after_train_step", "after_train_epoch", "before_val_step")


def run_of(epochs):
    places = [Place("before_train")]
    for epoch in range(1, epochs + 1):
        places += [
            Place(moment, epoch, iteration if moment.endswith("step") else 0)
            for moment in EPOCH
            for iteration in ((1, 2, 3) if moment.endswith("step") else (0,))
        ]
    return [Note(place, {"step": 0}) for place in [*places, Place("before_train_epoch", epochs + 1)]]


def test_every_kind_of_place_has_its_turn_by_both_signals_before_one_comes_again():
    kinds = {*EPOCH, "before_train", "train_step", "val_step"}
    kills = choose(run_of(3), 2 * len(kinds), seed=0)
    assert {kill.place.moment for kill in kills[: len(kinds)]} == kinds
    assert {(kill.by, kill.place.moment) for kill in kills} == {(by, k) for by in ("SIGKILL", "SIGTERM") for k in kinds}


def test_places_lie_in_epochs_with_one_before_and_one_behind_them():
    kills = choose(run_of(4), 50, seed=1)
    assert {kill.place.epoch for kill in kills if kill.place.moment != "before_train_epoch"} == {0, 2, 3}
    assert {kill.place.epoch for kill in kills if kill.place.moment == "before_train_epoch"} == {4}


def test_of_a_short_run_places_lie_before_the_last_epoch_or_in_the_only_one():
    assert {kill.place.epoch for kill in choose(run_of(2), 20, seed=1)} == {0, 1, 2}  # the last one begins
    assert {kill.place.epoch for kill in choose(run_of(1), 20, seed=1)} == {0, 1}


def test_the_same_seed_chooses_the_same_places_and_another_one_others():
    notes = run_of(5)
    assert choose(notes, 9, seed=3) == choose(notes, 9, seed=3)
    assert choose(notes, 9, seed=3) != choose(notes, 9, seed=4)


def test_the_end_of_a_run_is_no_place_to_kill_it():
    assert all(kill.place.epoch < 3 for kill in choose(run_of(2), 40, seed=0))


def test_a_kill_says_what_it_is_between():
    after = [kill for kill in choose(run_of(3), 16, seed=0) if kill.place.moment == "after_train_epoch"]
    assert [str(kill).partition(" in ") for kill in after] == [
        (who, " in ", "after_train_epoch, epoch 2 (between training and validation)")
        for who in ("SIGTERM to the process group", "SIGKILL")
    ]


def test_a_batch_of_each_validation_set_is_a_place_of_its_own_and_names_its_set():
    sets = [Place("before_val_step", 2, 1, val_set) for val_set in ("easy", "hard")]
    kills = choose([*run_of(3), *(Note(place, {"step": 0}) for place in sets), *run_of(1)], 200, seed=0)
    ends = {str(kill).partition(" in ")[2] for kill in kills if kill.place.moment == "val_step" and kill.place.val_set}
    assert ends == {"val_step, epoch 2, iteration 1 of 'easy'", "val_step, epoch 2, iteration 1 of 'hard'"}
