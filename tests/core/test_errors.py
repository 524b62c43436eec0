"""What messages suggest."""

from hypothesis import given
from hypothesis import strategies as st

from vision3d_engine.core.errors import did_you_mean

names = st.text("abcdeABCDE_", min_size=1, max_size=8)


def test_a_suggestion_does_not_mind_the_case():
    assert did_you_mean("adamw", ["SGD", "AdamW"]) == "; did you mean 'AdamW'?"
    assert did_you_mean("MIOU", ["loss", "mIoU"]) == "; did you mean 'mIoU'?"


@given(names, st.lists(names))
def test_the_mistake_itself_is_never_suggested(name, known):
    assert f"'{name}'" not in did_you_mean(name, [*known, name])
