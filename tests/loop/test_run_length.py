"""How many epochs, updates and batches a run has, against counting them one by one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision3d_engine.loop.run_length import RunLength

COUNTS = st.integers(1, 12)


def walked(max_epoch, max_updates, grad_acc_steps, batches):
    """Return epoch, iteration and updates after each batch of a plain loop."""
    epoch, updates, walk = 0, 0, []
    while max_epoch is None or epoch < max_epoch:
        epoch += 1
        for iteration in range(1, batches + 1):
            updates += iteration % grad_acc_steps == 0 or iteration == batches
            walk.append((epoch, iteration, updates))
            if updates == max_updates:
                return walk
    return walk


@given(st.none() | COUNTS, st.none() | COUNTS, st.integers(1, 4), COUNTS)
def test_it_is_that_of_a_plain_loop(max_epoch, max_updates, grad_acc_steps, batches):
    max_epoch = 3 if max_epoch is max_updates is None else max_epoch
    length = RunLength(max_epoch, max_updates, grad_acc_steps)
    walk = walked(max_epoch, max_updates, grad_acc_steps, batches)
    assert (length.epochs(batches), length.updates(batches)) == (walk[-1][0], walk[-1][2])
    for left, (epoch, iteration, updates) in enumerate(reversed(walk)):
        assert length.steps_left(epoch, iteration, updates, batches) == left


@pytest.mark.parametrize(("max_epoch", "epochs", "updates"), [(None, None, 7), (2, 2, None)])
def test_without_a_number_of_batches_one_does_not_follow_from_the_other(max_epoch, epochs, updates):
    length = RunLength(max_epoch, 7, 1)
    assert (length.epochs(None), length.updates(None), length.steps_left(1, 1, 1, None)) == (epochs, updates, None)
