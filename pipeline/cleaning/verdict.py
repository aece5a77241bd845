"""What a rule says about a column of texts."""

from typing import NamedTuple

from pipeline.cleaning.column import Mask


class Fault(NamedTuple):
    """A reason to drop texts.

    Attributes:
        reason: in words, naming the key of the recipe.
        found: [texts] whether it holds.
    """

    reason: str
    found: Mask
