"""Cross-entropy summed over targets, or of each target.

The trainer divides the sum to get the mean over a global batch. Losses that are not sums over tokens, such as those of
preferences, take the cross-entropy of each target.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from tokenizer.special_tokens import IGNORED
from training.block_sizes import rows_of_logits


def cross_entropy_sum(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the sum of -log softmax(logits)[label] in nats, an fp32 scalar, for logits [..., V]."""
    flat = logits.flatten(0, -2).float()
    return F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction="sum")


def token_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return -log softmax(logits)[label] in nats, fp32 with the labels' shape, for logits [..., V]. Ignored: 0."""
    flat = logits.flatten(0, -2).float()
    losses = F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view_as(labels)


class ChunkOperations:
    """The operations on a chunk of R rows of logits, without autograd. On CPU, a subclass replaces some of them."""

    _buffer_RV: torch.Tensor | None = None

    def logits(self, hidden_RD: torch.Tensor, weight_VD: torch.Tensor) -> torch.Tensor:
        """Return ``hidden @ weight.T``. It may overwrite earlier logits. No chunk may have more rows than the first."""
        if self._buffer_RV is None:
            # All chunks share one buffer: on CPU, page faults on fresh memory cost more than the arithmetic.
            self._buffer_RV = hidden_RD.new_empty(len(hidden_RD), len(weight_VD))
        return torch.mm(hidden_RD, weight_VD.t(), out=self._buffer_RV[: len(hidden_RD)])

    def exponentials(
        self, logits_RV: torch.Tensor, targets_R: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute exp(logits - row maximum), and subtract each row's sum in its target's column. Overwrites the logits.

        Returns:
            The result in the logits' dtype, the sums of the exponentials [R, 1], and the losses [R] in nats. The result
            divided by the sums is the gradient of the losses.

        Raises:
            IndexError: a target is outside the vocabulary.
        """
        targets_R1 = targets_R[:, None]
        largest = logits_RV.amax(1, keepdim=True).float()
        of_target = logits_RV.gather(1, targets_R1).float()
        raised = (logits_RV - largest).exp_()
        sums = raised.sum(1, keepdim=True)
        losses = sums.log() + largest - of_target
        return logits_RV.copy_(raised.scatter_add_(1, targets_R1, -sums)), sums, losses[:, 0]

    def product(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return ``x @ weight.T``."""
        return F.linear(x, weight)

    def add_product(
        self, total_VD: torch.Tensor | None, softmax_RV: torch.Tensor, hidden_RD: torch.Tensor
    ) -> torch.Tensor:
        """Return ``total + softmax.T @ hidden``. Later chunks are added in fp32: bf16 would round terms away."""
        if total_VD is None:
            return softmax_RV.t() @ hidden_RD
        if softmax_RV.dtype == torch.float32:
            return total_VD.addmm_(softmax_RV.t(), hidden_RD)
        return self.add_in_fp32(total_VD.float(), softmax_RV.t() @ hidden_RD)

    def add_in_fp32(self, total_VD: torch.Tensor, product_VD: torch.Tensor) -> torch.Tensor:
        """Add a product in lower precision to an fp32 total in place, and return the total."""
        return total_VD.add_(product_VD)


def chunked_cross_entropy_sum(
    hidden_MD: torch.Tensor, weight_VD: torch.Tensor, labels_M: torch.Tensor, operations: ChunkOperations
) -> torch.Tensor:
    """Return the sum of -log softmax(hidden @ weight.T)[label] in nats, an fp32 scalar, one chunk at a time.

    The forward pass also computes the gradients, chunk by chunk, as in Liger (arXiv 2410.10989).
    """
    needs_grad = torch.is_grad_enabled() and (hidden_MD.requires_grad or weight_VD.requires_grad)
    trains_head = needs_grad and weight_VD.requires_grad
    loss: torch.Tensor = _ChunkedCrossEntropySum.apply(
        hidden_MD, weight_VD, labels_M, needs_grad, trains_head, operations
    )
    return loss


class _ChunkedCrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: torch.Tensor,
        weight_VD: torch.Tensor,
        labels_M: torch.Tensor,
        needs_grad: bool,
        trains_head: bool,
        operations: ChunkOperations,
    ) -> torch.Tensor:
        ctx.spent = False
        rows, vocab = len(hidden_MD), len(weight_VD)
        size = rows_of_logits(hidden_MD.device.type, rows, vocab)
        total = hidden_MD.new_zeros((), dtype=torch.float32)
        dhidden_MD = torch.empty_like(hidden_MD) if needs_grad else None
        dweight_VD: torch.Tensor | None = None
        for start in range(0, rows, size):
            piece = slice(start, min(start + size, rows))
            hidden, labels = hidden_MD[piece], labels_M[piece]
            kept = labels != IGNORED
            logits = operations.logits(hidden, weight_VD)
            softmax, sums, losses = operations.exponentials(logits, labels.where(kept, 0))
            total += losses.where(kept, 0.0).sum()
            if dhidden_MD is None:
                continue
            # Divide the narrow [rows, D] tensors by the sums, not the wide [rows, V] ones.
            factor = kept[:, None] / sums
            torch.mul(operations.product(softmax, weight_VD.t()), factor, out=dhidden_MD[piece])
            if trains_head:
                dweight_VD = operations.add_product(dweight_VD, softmax, (hidden * factor).to(hidden.dtype))
            del logits, softmax  # otherwise they would stay alive alongside the next chunk's logits
        if dhidden_MD is not None:
            if trains_head:
                dweight_VD = torch.zeros_like(weight_VD) if dweight_VD is None else dweight_VD.to(weight_VD.dtype)
            ctx.save_for_backward(dhidden_MD, dweight_VD)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.spent:
            raise RuntimeError("backward was called twice on this loss: its gradients were released by the first call")
        ctx.spent = True
        dhidden_MD, dweight_VD = ctx.saved_tensors
        dweight_VD = None if dweight_VD is None else dweight_VD.mul_(upstream[0])
        return dhidden_MD.mul_(upstream[0]), dweight_VD, None, None, None, None


def chunked_token_cross_entropy(
    hidden_MD: torch.Tensor, weight_VD: torch.Tensor, labels_M: torch.Tensor, operations: type[ChunkOperations]
) -> torch.Tensor:
    """Return -log softmax(hidden @ weight.T)[label] in nats, [M] in fp32, one chunk at a time. Ignored labels give 0.

    The backward pass computes the logits again, because the losses' gradients are unknown before. In return, the
    forward pass stores nothing but its inputs.
    """
    losses_M: torch.Tensor = _ChunkedTokenCrossEntropy.apply(hidden_MD, weight_VD, labels_M, operations)
    return losses_M


class _ChunkedTokenCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: torch.Tensor,
        weight_VD: torch.Tensor,
        labels_M: torch.Tensor,
        operations: type[ChunkOperations],
    ) -> torch.Tensor:
        losses_M = hidden_MD.new_zeros(len(hidden_MD), dtype=torch.float32)
        chunk = operations()
        for piece in _pieces(hidden_MD, weight_VD):
            kept = labels_M[piece] != IGNORED
            logits = chunk.logits(hidden_MD[piece], weight_VD)
            losses = chunk.exponentials(logits, labels_M[piece].where(kept, 0))[2]
            losses_M[piece] = losses.where(kept, 0.0)
            del logits
        ctx.save_for_backward(hidden_MD, weight_VD, labels_M)
        ctx.operations = operations
        return losses_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        hidden_MD, weight_VD, labels_M = ctx.saved_tensors
        dhidden_MD = torch.empty_like(hidden_MD) if ctx.needs_input_grad[0] else None
        dweight_VD: torch.Tensor | None = None
        chunk = ctx.operations()
        for piece in _pieces(hidden_MD, weight_VD):
            hidden, labels = hidden_MD[piece], labels_M[piece]
            kept = labels != IGNORED
            logits = chunk.logits(hidden, weight_VD)
            softmax, sums, _ = chunk.exponentials(logits, labels.where(kept, 0))
            factor = (upstream[0][piece] * kept)[:, None] / sums
            if dhidden_MD is not None:
                torch.mul(chunk.product(softmax, weight_VD.t()), factor, out=dhidden_MD[piece])
            if ctx.needs_input_grad[1]:
                dweight_VD = chunk.add_product(dweight_VD, softmax, (hidden * factor).to(hidden.dtype))
            del logits, softmax
        if ctx.needs_input_grad[1]:
            dweight_VD = torch.zeros_like(weight_VD) if dweight_VD is None else dweight_VD.to(weight_VD.dtype)
        return dhidden_MD, dweight_VD, None, None


def _pieces(hidden_MD: torch.Tensor, weight_VD: torch.Tensor) -> Iterator[slice]:
    """Yield the rows of each chunk."""
    rows = len(hidden_MD)
    size = rows_of_logits(hidden_MD.device.type, rows, len(weight_VD))
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))
