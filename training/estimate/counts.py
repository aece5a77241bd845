"""Numbers of parameters by part, of a model of any family."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Parameters:
    """Counts of trained numbers. The gates' balancing biases are buffers, not parameters: ``router_biases`` counts the
    main model's.

    ``total``: every one of the main model, tied embeddings once. ``active``: those that a token is multiplied by, which
    is how DeepSeek states its 37B (V3) and 2.4B (V2-Lite): K of the E routed experts, the shared experts, and the
    output head; but not embeddings and learned positions, of which a token reads a row. (With tied embeddings the
    shared matrix counts as the head.) ``by_part`` sums to ``total``, ``active_by_part`` to ``active``.

    ``tables``: those in embeddings, learned positions and the head, tied ones once.

    ``prediction`` and ``active_prediction``: what the modules of multi-token prediction add in training, which share
    embedding and head and which plain generation leaves out; ``all``: with them.
    """

    by_part: dict[str, int]
    active_by_part: dict[str, int]
    tables: int
    prediction: int = 0
    active_prediction: int = 0
    router_biases: int = 0

    @property
    def total(self) -> int:
        return sum(self.by_part.values())

    @property
    def active(self) -> int:
        return sum(self.active_by_part.values())

    @property
    def all(self) -> int:
        return self.total + self.prediction
