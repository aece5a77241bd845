"""Connected components of a graph whose edges come in blocks."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Nodes that ``flatten`` looks at together.
_BLOCK = 1 << 20

Nodes = NDArray[Any]


def join(parent: Nodes, one: Nodes, other: Nodes) -> None:
    """Join the components at both ends of each edge, in place.

    ``parent`` begins as 0, 1, 2, ... and never points upwards; the root of a component, which is its least node,
    points at itself. All edges of a block are worked on at once: each root takes the least root that an edge leads it
    to, and paths are halved until they have length 1 (after Shiloach and Vishkin 1982).
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
    """Let nodes point at their roots, in as many steps as the logarithm of the longest path among them."""
    while not np.array_equal(above := parent[parent[nodes]], parent[nodes]):
        parent[nodes] = above


def flatten(parent: Nodes) -> None:
    """Let every node point at the root of its component, in place."""
    for at in range(0, len(parent), _BLOCK):
        # What lies below the block is flat already, and no node points upwards.
        block = parent[at : at + _BLOCK]
        while not np.array_equal(above := parent[block], block):
            block[:] = above
