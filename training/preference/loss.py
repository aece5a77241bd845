"""Losses over pairs of a chosen and a rejected answer, as functions of their log-probabilities."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from configs.schema.preference import PreferenceSection
from tokenizer.special_tokens import IGNORED


@dataclass(frozen=True)
class Pairs:
    """The log-probabilities of n pairs of answers in nats, each [n] in fp32.

    Attributes:
        chosen: log-probability of the chosen answer under the model, divided by its probability under the reference.
        rejected: the same for the rejected answer.
        chosen_tokens: number of target tokens of the chosen answer.
        rejected_tokens: number of target tokens of the rejected answer.
    """

    chosen: torch.Tensor
    rejected: torch.Tensor
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor

    @property
    def present(self) -> torch.Tensor:
        """Whether both answers have target tokens, [n] bool. Batches that only fill up a rank's share have none."""
        return (self.chosen_tokens > 0) & (self.rejected_tokens > 0)


def pairs_of(losses_BT: torch.Tensor, labels_BT: torch.Tensor, reference_B: torch.Tensor) -> Pairs:
    """Compare a model with its reference.

    Args:
        losses_BT: the model's cross-entropy of each label in nats, 0 where the label is ``IGNORED``. The first half of
            the rows are the chosen answers, the second half the rejected ones in the same order.
        labels_BT: the labels.
        reference_B: the reference's log-probability of each row's labels.
    """
    chosen, rejected = (-losses_BT.sum(1) - reference_B).chunk(2)
    chosen_tokens, rejected_tokens = (labels_BT != IGNORED).sum(1).chunk(2)
    return Pairs(chosen, rejected, chosen_tokens, rejected_tokens)


def preference_losses(pairs: Pairs, section: PreferenceSection) -> torch.Tensor:
    """Return the loss of each pair, [n].

    ``sigmoid`` is DPO (arXiv 2305.18290, equation 7). ``sigmoid_norm`` is the same on log-probabilities per target
    token (arXiv 2411.15124, equation 6). ``ipo`` is equation 17 of arXiv 2310.12036, also per target token, as its
    authors computed it. All three equal the losses of these names in trl 1.x (``DPOTrainer``).
    """
    if section.loss == "sigmoid":
        return -F.logsigmoid(section.beta * (pairs.chosen - pairs.rejected))
    chosen = pairs.chosen / pairs.chosen_tokens.clamp(min=1)
    margin = chosen - pairs.rejected / pairs.rejected_tokens.clamp(min=1)
    if section.loss == "ipo":
        return (margin - 1 / (2 * section.beta)) ** 2
    return -F.logsigmoid(section.beta * margin)


#: What is measured besides the loss, each as a mean over pairs.
REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margin", "rewards/accuracy")


def reward_sums(pairs: Pairs, beta: float) -> dict[str, torch.Tensor]:
    """Return the sums of the :data:`REWARDS` over the pairs that are present, as scalars without gradients.

    An answer's implicit reward is beta times its log-probability relative to the reference. The margin is the chosen
    answer's reward minus the rejected one's. The accuracy counts the pairs with a margin above 0.
    """
    chosen, rejected = (beta * side.detach() for side in (pairs.chosen, pairs.rejected))
    values = (chosen, rejected, chosen - rejected, (chosen > rejected).float())
    return {name: value.where(pairs.present, 0.0).sum() for name, value in zip(REWARDS, values, strict=True)}
