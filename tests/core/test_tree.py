from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from seqwm.core.tree import flatten, tree_map, unflatten

NAMES = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=4)
TREES = st.recursive(st.integers(), lambda inner: st.dictionaries(NAMES, inner, min_size=1, max_size=3), max_leaves=8)


@given(TREES)
def test_flattening_is_undone(tree):
    assert unflatten(flatten(tree)) == tree


@given(TREES)
def test_a_function_reaches_every_leaf_and_leaves_the_names(tree):
    doubled = flatten(tree_map(lambda leaf: 2 * leaf, tree))
    assert doubled == {path: 2 * leaf for path, leaf in flatten(tree).items()}


def test_leaves_are_named_by_their_path():
    array = np.zeros(2)
    assert flatten(array) == {"": array}
    assert list(flatten({"camera": {"front": 1, "back": 2}, "goal": 3})) == ["camera/front", "camera/back", "goal"]
    assert tree_map(lambda leaf: leaf, None) is None
