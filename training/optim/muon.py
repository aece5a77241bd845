"""The Muon optimizer: momentum with orthogonalized matrix updates, at any ZeRO stage.

Muon is from Jordan et al. (https://kellerjordan.github.io/posts/muon). As in Moonlight (arXiv 2502.16982), Muon's
updates are scaled to the RMS of AdamW's updates, so that both optimizers can use the same learning rate.

DeepSpeed passes an optimizer flat fp32 partitions of the parameters, whose gradients are already reduced, unscaled and
clipped. The momentum buffers have the same layout. A matrix that lies entirely in this rank's partition is
orthogonalized locally. A matrix that is sharded across ranks is gathered on one of them, which orthogonalizes it and
scatters the result. All ZeRO stages therefore compute the same updates, and clipping applies to the gradient, as the
recipe specifies.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.optim.adamw import adamw

from training.engine.partitions import Partition
from training.layers.init import matrices_in

#: Coefficients of the quintic Newton-Schulz iteration, which moves all singular values close to 1 (Jordan).
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
#: RMS of AdamW's updates, which Moonlight's scaling matches.
_RMS = 0.2


class Matrices(NamedTuple):
    """Shape of a parameter's matrices. Stacked experts and fused weights consist of several matrices."""

    rows: int
    columns: int

    @property
    def numel(self) -> int:
        return self.rows * self.columns


def matrices(name: str, shape: Iterable[int]) -> Matrices:
    """Return the shape of the matrices in a parameter with two or more dimensions. Fused matrices count separately."""
    *_, rows, columns = shape
    return Matrices(rows // matrices_in(name), columns)


@torch.no_grad()
def orthogonalized(batch_BRC: torch.Tensor) -> torch.Tensor:
    """Return each matrix's near-orthogonal factor, times 0.2 sqrt(max(R, C)): [B, R, C] -> [B, R, C] in fp32.

    On a GPU, the Newton-Schulz iteration runs in bf16, which is much faster and precise enough. Elsewhere it runs in
    fp32.
    """
    working = torch.bfloat16 if batch_BRC.is_cuda else torch.float32
    tall = batch_BRC.shape[1] > batch_BRC.shape[2]
    x = batch_BRC.to(working)
    x = x.mT if tall else x
    x = x / x.flatten(1).norm(dim=1)[:, None, None].clamp_min(1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.mT if tall else x
    return x.float() * (_RMS * math.sqrt(max(batch_BRC.shape[1:])))


class _Piece(NamedTuple):
    """Elements ``start`` .. ``start+numel``-1 of the matrix ``key``, stored at ``offset`` in a partition."""

    key: tuple[str, int]
    shape: Matrices
    start: int
    numel: int
    offset: int


@dataclass
class _Plan:
    """The plan for updating a partition.

    Attributes:
        complete: the offsets of complete matrices, by shape.
        exchange: gathers the matrices that are sharded across ranks; None if there are none.
        device: where to orthogonalize.
    """

    complete: dict[Matrices, list[int]]
    exchange: "_Exchange | None"
    device: torch.device


class Muon(torch.optim.Optimizer):
    """Muon for parameter groups with ``orthogonal: True``, AdamW for others. Call ``bind`` before the first step."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        momentum: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        """Initialize the optimizer. ``groups`` are torch parameter groups. The other arguments are their defaults."""
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(groups, {**defaults, "orthogonal": False})
        self._plans: dict[torch.Tensor, _Plan] = {}

    def bind(
        self,
        partitions: Iterable[Partition],
        orthogonal: Callable[[str, tuple[int, ...]], bool],
        device: torch.device | None = None,
    ) -> None:
        """Plan the updates of the partitions. Collective over their process groups.

        Args:
            partitions: all partitions of this rank, in the same order on every rank.
            orthogonal: returns whether the parameter with this name and shape is in an orthogonal group.
            device: where to orthogonalize, which matters for partitions in host memory. If None, each partition's
                device.
        """
        self._plans = {part.master: _plan(part, device or part.master.device, orthogonal) for part in partitions}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the parameters that have gradients. Collective over each partition's group."""
        for group in self.param_groups:
            for master in group["params"]:
                if master.grad is None:
                    continue
                (self._orthogonal if group["orthogonal"] else self._adamw)(master, group)

    def _adamw(self, master: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[master]
        for key in ("exp_avg", "exp_avg_sq"):
            if key not in state:
                state[key] = torch.zeros_like(master)
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=master.device)
        adamw(
            [master],
            [master.grad],  # type: ignore[list-item]
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [state["step"]],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _orthogonal(self, master: torch.Tensor, group: dict[str, Any]) -> None:
        gradient, state = master.grad, self.state[master]
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(master)
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        plan = self._plans[master]
        update = gradient.lerp(buffer, group["momentum"]).to(plan.device).view(-1)
        for shape, offsets in plan.complete.items():
            batch = torch.stack([update[at : at + shape.numel].view(shape) for at in offsets])
            for at, matrix in zip(offsets, orthogonalized(batch), strict=True):
                update[at : at + shape.numel] = matrix.reshape(-1)
        if plan.exchange is not None:
            plan.exchange.orthogonalize(update)
        master.mul_(1 - group["lr"] * group["weight_decay"])
        master.add_(update.view_as(master).to(master.device), alpha=-group["lr"])


def _plan(partition: Partition, device: torch.device, orthogonal: Callable[[str, tuple[int, ...]], bool]) -> _Plan:
    complete: dict[Matrices, list[int]] = {}
    cut: list[_Piece] = []
    for piece in partition.slices:
        if not orthogonal(piece.name, piece.shape):
            continue
        shape = matrices(piece.name, piece.shape)
        end = piece.start + piece.numel
        for number in range(piece.start // shape.numel, -(-end // shape.numel)):
            low, high = max(piece.start, number * shape.numel), min(end, (number + 1) * shape.numel)
            offset = piece.offset + low - piece.start
            if high - low == shape.numel:
                complete.setdefault(shape, []).append(offset)
            else:
                cut.append(_Piece((piece.name, number), shape, low - number * shape.numel, high - low, offset))
    group = partition.group
    exchange = None
    if group is not None and dist.get_world_size(group) > 1:
        gathered: list[list[_Piece]] = [[] for _ in range(dist.get_world_size(group))]
        dist.all_gather_object(gathered, cut, group=group)
        exchange = _Exchange(gathered, group) if any(gathered) else None
    return _Plan(complete, exchange, device)


class _Exchange:
    """Gathers each matrix that is sharded across a group onto one rank, its owner, and sends the updates back."""

    def __init__(self, pieces: list[list[_Piece]], group: dist.ProcessGroup) -> None:
        """Plan the exchange. ``pieces`` holds a list of pieces for each rank in the group."""
        self._group, rank = group, dist.get_rank(group)
        owners = _owners(pieces)
        #: This rank's pieces in the order in which they are sent: by owner.
        self._held = sorted(pieces[rank], key=lambda piece: (owners[piece.key], piece.key))
        #: Pieces of the matrices that this rank owns, in the order in which they arrive: by holder.
        self._received = [
            piece for held in pieces for piece in sorted(held, key=lambda piece: piece.key) if owners[piece.key] == rank
        ]
        self._out = [sum(p.numel for p in self._held if owners[p.key] == to) for to in range(len(pieces))]
        self._in = [sum(p.numel for p in held if owners[p.key] == rank) for held in pieces]
        self._owned: dict[Matrices, list[tuple[str, int]]] = {}
        for piece in self._received:
            keys = self._owned.setdefault(piece.shape, [])
            if piece.key not in keys:
                keys.append(piece.key)

    def orthogonalize(self, update: torch.Tensor) -> None:
        """Orthogonalize the sharded matrices of an update, and write this rank's pieces in place. Collective."""
        sent = _joined([update[p.offset : p.offset + p.numel] for p in self._held], update)
        received = update.new_empty(sum(self._in))
        dist.all_to_all_single(received, sent, self._in, self._out, group=self._group)
        parts = list(received.split([piece.numel for piece in self._received]))
        for shape, keys in self._owned.items():
            batch = update.new_empty(len(keys), shape.numel)
            rows = {key: batch[number] for number, key in enumerate(keys)}
            held = [(piece, number) for number, piece in enumerate(self._received) if piece.shape == shape]
            for piece, number in held:
                rows[piece.key][piece.start : piece.start + piece.numel] = parts[number]
            batch.copy_(orthogonalized(batch.view(-1, *shape)).reshape(batch.shape))
            for piece, number in held:
                parts[number] = rows[piece.key][piece.start : piece.start + piece.numel]
        back = torch.empty_like(sent)
        dist.all_to_all_single(back, _joined(parts, update), self._out, self._in, group=self._group)
        for piece, part in zip(self._held, back.split([p.numel for p in self._held]), strict=True):
            update[piece.offset : piece.offset + piece.numel] = part


def _joined(parts: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    return torch.cat(parts) if parts else like.new_empty(0)


def _owners(pieces: list[list[_Piece]]) -> dict[tuple[str, int], int]:
    """Choose each matrix's owner: among the ranks that hold a piece of it, the one with the least work so far."""
    holders: dict[tuple[str, int], list[int]] = {}
    sizes: dict[tuple[str, int], int] = {}
    for rank, held in enumerate(pieces):
        for piece in held:
            holders.setdefault(piece.key, []).append(rank)
            sizes[piece.key] = piece.shape.numel * min(piece.shape)
    work = [0] * len(pieces)
    owners = {}
    for key in sorted(holders, key=lambda key: (-sizes[key], key)):
        owners[key] = min(holders[key], key=lambda rank: (work[rank], rank))
        work[owners[key]] += sizes[key]
    return owners
