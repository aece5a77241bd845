"""The training objective over pairs of answers."""

from typing import Any

import torch

from configs.schema.models import ModelSection
from configs.schema.preference import PreferenceSection
from configs.schema.train import TrainSection
from tokenizer.special_tokens import IGNORED
from training.data.batch import Batch
from training.objective import Objective
from training.preference.loss import REWARDS, pairs_of, preference_losses, reward_sums

LOSS = "preference"


class PreferenceObjective(Objective):
    """The mean loss over pairs, plus the balancing losses of ``train``. There is no multi-token prediction.

    Batches are those of ``PreferenceExamples`` with ``reference`` set. The implicit rewards are measured too, with a
    weight of 0.
    """

    def __init__(self, model: ModelSection, train: TrainSection, section: PreferenceSection) -> None:
        super().__init__(model, train.model_copy(update={"mtp_loss": 0.0}))
        balancing = {name: weight for name, weight in self.weights.items() if name != "cross_entropy"}
        self.weights = {LOSS: 1.0, **balancing, **dict.fromkeys(REWARDS, 0.0)}
        self._section = section

    def counts(self, batch: Batch) -> dict[str, int]:
        """Return, for each loss, the number of pairs, rows or tokens over which it is averaged."""
        others = {"sequence_balance": len(batch.inputs), "load_balance": batch.tokens, "router_z": batch.tokens}
        return {name: others.get(name, _pairs(batch)) for name in self.weights}

    def __call__(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """Compute each loss summed over a batch, as scalars attached to the autograd graph."""
        return self._sums(model, batch, self.balancing)

    def validate(self, model: Any, batch: Batch) -> dict[str, tuple[torch.Tensor, int]]:
        """Compute the loss and the rewards, each as a sum over pairs and the number of pairs."""
        sums, count = self._sums(model, batch, []), _pairs(batch)
        return {name: (total, count) for name, total in sums.items()}

    def _sums(self, model: Any, batch: Batch, balancing: list[str]) -> dict[str, torch.Tensor]:
        assert batch.reference is not None, "the reference log-probabilities are missing"
        sums = dict(self.forward(model, batch, [batch.labels], balancing, per_token=True))
        pairs = pairs_of(sums.pop("cross_entropy"), batch.labels, batch.reference)
        loss = preference_losses(pairs, self._section).where(pairs.present, 0.0).sum()
        return {LOSS: loss, **sums, **reward_sums(pairs, self._section.beta)}


def _pairs(batch: Batch) -> int:
    """Return the number of pairs that have target tokens."""
    chosen, rejected = (batch.labels != IGNORED).any(1).chunk(2)
    return int((chosen & rejected).sum())


def log_probabilities(objective: Objective, model: Any, batch: Batch) -> torch.Tensor:
    """Return the log-probability of each row's labels in nats, [B] in fp32."""
    losses_BT = objective.forward(model, batch, [batch.labels], per_token=True)["cross_entropy"]
    return -losses_BT.detach().sum(1)
