"""What messages suggest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision3d_engine.core.errors import DataError, did_you_mean, without_escapes

names = st.text("abcdeABCDE_", min_size=1, max_size=8)


def test_a_suggestion_does_not_mind_the_case():
    assert did_you_mean("adamw", ["SGD", "AdamW"]) == "; did you mean 'AdamW'?"
    assert did_you_mean("MIOU", ["loss", "mIoU"]) == "; did you mean 'mIoU'?"


@given(names, st.lists(names))
def test_the_mistake_itself_is_never_suggested(name, known):
    assert f"'{name}'" not in did_you_mean(name, [*known, name])


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("\033[1;31mred\033[0m", "red"),
        ("\033[2Kdone\033[1A", "done"),
        ("\033]8;;http://a.b\033\\a link\033]8;;\a", "a link"),
        ("cut off \033[1;3", "cut off "),
        ("cut off \033", "cut off "),
        ("\033(Bplain \033M[1, 2]", "plain [1, 2]"),
    ],
)
def test_escape_sequences_are_left_out_of_messages(text, plain):
    assert without_escapes(text) == plain


def test_an_error_that_repeats_a_coloured_message_is_plain():
    error = DataError("\033[1mdo those steps\033[0m", 3)
    assert error.args == ("do those steps", 3)
    assert str(DataError("\033[1mbold\033[0m")) == "bold"
