"""Numbers of parameters by part, for a model of any family."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Parameters:
    """Counts of parameters. Balancing biases of gates are buffers: ``router_biases`` counts those of the main model.

    ``total``: all parameters of the main model, tied embeddings once. ``active``: those that each token is multiplied
    with, as in DeepSeek's 37B (V3) and 2.4B (V2-Lite): K of the E routed experts, the shared experts and the output
    head, but not embeddings and learned positions, of which a token reads one row. (Tied embeddings count as the head.)
    ``by_part`` sums to ``total``, ``active_by_part`` to ``active``.

    ``tables``: parameters of embeddings, learned positions and the head, tied ones once.

    ``prediction`` and ``active_prediction``: what the modules of multi-token prediction add in training. They share
    embedding and head, and plain generation does not use them. ``all``: total with them.
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
