"""The training objective: cross-entropy, multi-token prediction and balancing losses, each with its own denominator."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from configs.schema.models import ModelSection
from configs.schema.train import TrainSection
from tokenizer.special_tokens import IGNORED
from training.data.batch import Batch
from training.layers.packed_documents import Documents


class Objective:
    """The training objective: a weighted sum of several losses, each averaged over a global batch.

    ``weights`` maps each loss to its weight. ``cross_entropy`` and ``mtp_1`` ... are averaged over their target tokens,
    ``sequence_balance`` over sequences, and ``load_balance`` and ``router_z`` over non-padding tokens. Losses with
    weight 0 are not computed.
    """

    def __init__(self, model: ModelSection, train: TrainSection) -> None:
        depth = model.prediction_depth if train.mtp_loss else 0
        weights = {"cross_entropy": 1.0}
        weights |= {f"mtp_{k}": train.mtp_loss / depth for k in range(1, depth + 1)}
        if model.num_moe_layers - model.prediction_depth + depth > 0:
            weights |= {
                "sequence_balance": train.sequence_loss,
                "load_balance": train.load_balance_loss,
                "router_z": train.router_z_loss,
            }
        self.weights: Mapping[str, float] = {name: weight for name, weight in weights.items() if weight}
        self._depth, self._separate = depth, train.mask_documents

    def counts(self, batch: Batch) -> dict[str, int]:
        """Return, for each loss, the number of targets, sequences or tokens in a batch over which it is summed."""
        targets = self._targets(batch)
        counts = {"cross_entropy": batch.targets}
        counts |= {f"mtp_{k}": int((targets[k] != IGNORED).sum()) for k in range(1, self._depth + 1)}
        counts |= {"sequence_balance": len(batch.inputs)}
        counts |= dict.fromkeys(("load_balance", "router_z"), batch.tokens)
        return {name: counts[name] for name in self.weights}

    def __call__(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """Compute each loss summed over a batch, as scalars attached to the autograd graph."""
        return self.forward(model, batch, self._targets(batch), self.balancing)

    @property
    def balancing(self) -> list[str]:
        """Names of the balancing losses that are computed."""
        return [name for name in ("sequence_balance", "load_balance", "router_z") if name in self.weights]

    def forward(
        self,
        model: Any,
        batch: Batch,
        targets: list[torch.Tensor],
        balancing: Sequence[str] = (),
        per_token: bool = False,
    ) -> dict[str, torch.Tensor]:
        """Run a model on a batch and return its losses by name. See ``DeepseekForCausalLM.forward``."""
        options = {**({"balance": balancing} if balancing else {}), **({"per_token": True} if per_token else {})}
        return dict(model(batch.inputs, targets=targets, **self._context(batch), **options))

    def validate(self, model: Any, batch: Batch) -> dict[str, tuple[torch.Tensor, int]]:
        """Compute the cross-entropy summed over a batch's targets, and the number of targets."""
        return {"cross_entropy": (self.cross_entropy(model, batch)[0], batch.targets)}

    def cross_entropy(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the cross-entropy summed over a batch's targets, and the number of targets, as tensors."""
        sums = self.forward(model, batch, [batch.labels])
        return sums["cross_entropy"], (batch.labels != IGNORED).sum()

    def logits(self, model: Any, batch: Batch) -> torch.Tensor:
        """Return the logits [B, T, V] of all positions or, for a classifier, the class logits [B, C]."""
        out: torch.Tensor = model(batch.inputs, **self._context(batch))
        return out

    def _context(self, batch: Batch) -> dict[str, torch.Tensor | None]:
        """Return the batch's tensors that the model takes in addition to the token ids."""
        tensors = {name: getattr(batch, name) for name in ("lengths", "source", "source_lengths")}
        return {
            **({"starts": self._starts(batch)} if self._separate else {}),
            **{name: tensor for name, tensor in tensors.items() if tensor is not None},
        }

    def _starts(self, batch: Batch) -> torch.Tensor | None:
        if not self._separate:
            return None
        assert batch.starts is not None, "train.mask_documents needs batches with the starts of documents"
        return batch.starts

    def _targets(self, batch: Batch) -> list[torch.Tensor]:
        """Return the labels for the main model, followed by the shifted labels for each prediction depth.

        Labels past the end of the sample or in another document are ignored.
        """
        starts = self._starts(batch)
        documents = None if starts is None else Documents(starts, *batch.inputs.shape)
        targets = [batch.labels]
        for distance in range(1, self._depth + 1):
            labels = F.pad(batch.labels[:, distance:], (0, distance), value=IGNORED)
            if documents is not None:
                labels = labels.where(documents.follow(distance), IGNORED)
            targets.append(labels)
        return targets
