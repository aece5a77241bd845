"""Union-find: the connected components of a graph whose edges arrive in blocks."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Number of nodes that ``flatten`` processes at a time.
_BLOCK = 1 << 20

Nodes = NDArray[Any]


def join(parent: Nodes, one: Nodes, other: Nodes) -> None:
    """Join the components at the two ends of each edge, in place.

    ``parent`` is initially 0, 1, 2, ... A parent is never larger than its child. The root of a component, which is its
    own parent, is therefore the component's smallest node. All edges of a block are processed together: each root is
    attached to the smallest root that any of its edges leads to, and paths are halved until their length is 1 (Shiloach
    and Vishkin 1982).
    """
    while True:
        roots, others = _roots(parent, one), _roots(parent, other)
        apart = np.flatnonzero(roots != others)
        if not len(apart):
            return
        one = np.maximum(roots[apart], others[apart])
        other = np.minimum(roots[apart], others[apart])
        np.minimum.at(parent, one, other)
        _shorten(parent, one)


def _roots(parent: Nodes, nodes: Nodes) -> Nodes:
    roots = parent[nodes]
    while not np.array_equal(above := parent[roots], roots):
        roots = above
    parent[nodes] = roots
    return roots


def _shorten(parent: Nodes, nodes: Nodes) -> None:
    """Point each node directly at its root. The number of steps is logarithmic in the length of the longest path."""
    while not np.array_equal(above := parent[parent[nodes]], parent[nodes]):
        parent[nodes] = above


def flatten(parent: Nodes) -> None:
    """Point every node of the graph directly at its root, in place."""
    for at in range(0, len(parent), _BLOCK):
        # Nodes before this block are flat already, and parents are never larger than their children.
        block = parent[at : at + _BLOCK]
        while not np.array_equal(above := parent[block], block):
            block[:] = above
