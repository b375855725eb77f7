"""Nested dicts of arrays (the form of a Dict space) flattened by name and restored.

A leaf is named by its path, 'camera/front'; an array that stands alone has the empty name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves by path, in the order of the tree: {'a': {'b': x}} gives {'a/b': x}; x alone gives {'': x}."""
    return dict(_walk(tree, prefix))


def unflatten(leaves: Mapping[str, Any]) -> Any:
    """The tree that `flatten` was given."""
    if set(leaves) == {""}:
        return leaves[""]
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def tree_map(function: Callable[[Any], Any], tree: Any) -> Any:
    """`function` on every leaf, the structure kept; None stays None."""
    if tree is None:
        return None
    if isinstance(tree, Mapping):
        return {name: tree_map(function, leaf) for name, leaf in tree.items()}
    return function(tree)


def _walk(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for name, node in tree.items():
            yield from _walk(node, f"{prefix}/{name}" if prefix else str(name))
    else:
        yield prefix, tree
