"""Parameter counts by part, for a model of any family."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Parameters:
    """Parameter counts.

    ``total`` includes all parameters of the main model, counting tied embeddings once. ``active`` counts the parameters
    that each token is multiplied by, as in DeepSeek's 37B (V3) and 2.4B (V2-Lite). It includes K of the E routed
    experts, the shared experts and the output head. It excludes embeddings and learned positions, since a token reads
    only one row of each. (Tied embeddings count as the head.) ``by_part`` sums to ``total`` and ``active_by_part`` to
    ``active``.

    ``tables`` includes embeddings, learned positions and the head, counting tied tables only once.

    ``prediction`` and ``active_prediction`` count the parameters that multi-token prediction modules add in training.
    These modules share the main model's embedding and head, and are not used in plain generation. ``all`` is ``total``
    plus ``prediction``.

    The gates' balancing biases are buffers, not parameters. ``router_biases`` counts them for the main model.
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
