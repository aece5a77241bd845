"""Union-find: connected components of a graph whose edges come in blocks."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Nodes that ``flatten`` processes at a time.
_BLOCK = 1 << 20

Nodes = NDArray[Any]


def join(parent: Nodes, one: Nodes, other: Nodes) -> None:
    """Join the components at both ends of each edge, in place.

    ``parent`` is initially 0, 1, 2, ... A parent is never larger than its child. The root of a component is its
    smallest node, and its own parent. All edges of a block are processed together: the parent of a root becomes the
    smallest root to which an edge leads, and paths are halved until they have length 1 (Shiloach and Vishkin 1982).
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
    """Make roots the parents of nodes, in a number of steps that is logarithmic in the longest path."""
    while not np.array_equal(above := parent[parent[nodes]], parent[nodes]):
        parent[nodes] = above


def flatten(parent: Nodes) -> None:
    """Make the root of its component the parent of every node, in place."""
    for at in range(0, len(parent), _BLOCK):
        # Smaller nodes than the block are flat already, and parents are never larger.
        block = parent[at : at + _BLOCK]
        while not np.array_equal(above := parent[block], block):
            block[:] = above
