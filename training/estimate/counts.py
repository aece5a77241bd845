"""Parameter counts by part, for a model of any family."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Parameters:
    """Parameter counts.

    ``total`` includes all parameters of the main model, counting tied embeddings once. ``active`` counts the parameters
    used to compute each token, as in DeepSeek's 37B (V3) and 2.4B (V2-Lite). ``active`` includes K of the E routed
    experts, the shared experts and the output head. It excludes embeddings and learned positions, since a token reads
    only one row of each. (Tied embeddings count as the head.) ``by_part`` sums to ``total`` and ``active_by_part`` to
    ``active``.

    ``tables`` counts the parameters of embeddings, learned positions and the head, counting tied tables only once.

    ``prediction`` and ``active_prediction`` count the parameters that multi-token prediction modules add in training.
    Those modules share the main model's embedding and head, and are used in generation only for speculative decoding.
    ``all`` is ``total`` plus ``prediction``.

    ``router_biases`` counts the elements of the main model's load-balancing biases, which are buffers and not
    parameters.
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
