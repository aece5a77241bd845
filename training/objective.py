"""What training minimizes: cross-entropy, multi-token prediction and the balancing losses, each by its own count."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from configs.schema.models import ModelSection
from configs.schema.train import TrainSection
from tokenizer.special_tokens import IGNORED
from training.data.batch import Batch
from training.layers.packed_documents import Documents


class Objective:
    """The weighted sum of the means of several losses over a global batch.

    ``weights`` holds the weight of each loss by name. ``cross_entropy`` and ``mtp_1`` ... are means over their target
    tokens, ``sequence_balance`` over sequences, ``load_balance`` and ``router_z`` over tokens without padding. Losses
    of weight 0 are not computed.
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
        """Number of targets, sequences or tokens in a batch that each loss is summed over."""
        targets = self._targets(batch)
        counts = {"cross_entropy": batch.targets}
        counts |= {f"mtp_{k}": int((targets[k] != IGNORED).sum()) for k in range(1, self._depth + 1)}
        counts |= {"sequence_balance": len(batch.inputs)}
        counts |= dict.fromkeys(("load_balance", "router_z"), batch.tokens)
        return {name: counts[name] for name in self.weights}

    def __call__(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """The sum of each loss over a batch, scalars in the graph."""
        balance = [name for name in ("sequence_balance", "load_balance", "router_z") if name in self.weights]
        options = {"balance": balance} if balance else {}
        sums = model(batch.inputs, targets=self._targets(batch), **self._context(batch), **options)
        return dict(sums)

    def cross_entropy(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum of the cross-entropy over the targets of a batch, and their number, for validation."""
        sums = model(batch.inputs, targets=[batch.labels], **self._context(batch))
        return sums["cross_entropy"], (batch.labels != IGNORED).sum()

    def logits(self, model: Any, batch: Batch) -> torch.Tensor:
        """Logits at the position of each target, [B, T, V], or of classes, [B, C]."""
        out: torch.Tensor = model(batch.inputs, **self._context(batch))
        return out

    def _context(self, batch: Batch) -> dict[str, torch.Tensor | None]:
        """The further inputs of the model that a batch holds."""
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
        """Labels of the main model and of each depth, shifted; those past the end or in other documents are ignored."""
        starts = self._starts(batch)
        documents = None if starts is None else Documents(starts, *batch.inputs.shape)
        targets = [batch.labels]
        for distance in range(1, self._depth + 1):
            labels = F.pad(batch.labels[:, distance:], (0, distance), value=IGNORED)
            if documents is not None:
                labels = labels.where(documents.follow(distance), IGNORED)
            targets.append(labels)
        return targets
