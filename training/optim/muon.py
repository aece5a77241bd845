"""Muon: momentum whose update of a matrix is made orthogonal, at any ZeRO stage.

After Jordan and others (https://kellerjordan.github.io/posts/muon) with the scale of Moonlight (arXiv 2502.16982),
which gives updates AdamW's size, so that both share a learning rate.

DeepSpeed hands an optimiser flat fp32 pieces of the parameters, their gradients reduced, unscaled and clipped. The
momentum is kept like them, element by element. A matrix that is whole in this rank's piece is orthogonalised here; one
that is cut between ranks goes to one of them, which does it for all and sends the parts back. Clipping is thus of the
gradient, as the recipe says, and every stage does the same.
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

#: Of the quintic whose iteration takes all singular values near one (Jordan).
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
#: RMS of AdamW's updates, which Moonlight matches.
_RMS = 0.2


class Matrices(NamedTuple):
    """How a parameter is cut into matrices, one after another: experts, and what is fused in one weight."""

    rows: int
    columns: int

    @property
    def numel(self) -> int:
        return self.rows * self.columns


def matrices(name: str, shape: Iterable[int]) -> Matrices:
    """The matrices of a parameter of two or more dimensions; those that are fused in one weight are apart."""
    *_, rows, columns = shape
    return Matrices(rows // matrices_in(name), columns)


@torch.no_grad()
def orthogonalized(batch_BRC: torch.Tensor) -> torch.Tensor:
    """Near-orthogonal factor of each matrix [B, R, C] by Newton-Schulz, times 0.2 sqrt(max(R, C)); in fp32.

    Computed in bf16 on a GPU, where it is far faster and the iteration forgives it, else in fp32.
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
    """Elements ``start`` .. ``start+numel``-1 of the matrix ``key`` at ``offset`` of a partition."""

    key: tuple[str, int]
    shape: Matrices
    start: int
    numel: int
    offset: int


@dataclass
class _Plan:
    """What a partition holds: whole matrices by shape, with their offsets, and pieces of those it shares."""

    whole: dict[Matrices, list[int]]
    exchange: "_Exchange | None"
    device: torch.device


class Muon(torch.optim.Optimizer):
    """Groups with ``orthogonal: True`` by Muon, the others by AdamW. ``bind`` comes before the first step."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        momentum: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        """``groups``: as torch's optimisers take them; the rest are defaults of theirs."""
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(groups, {**defaults, "orthogonal": False})
        self._plans: dict[torch.Tensor, _Plan] = {}

    def bind(
        self,
        partitions: Iterable[Partition],
        orthogonal: Callable[[str, tuple[int, ...]], bool],
        device: torch.device | None = None,
    ) -> None:
        """Learn what lies where in the tensors that will be stepped on; collective over their groups.

        Args:
            partitions: all of this rank's, in the same order on every rank.
            orthogonal: whether a parameter of such a name and shape stands in an orthogonal group.
            device: where matrices are made, which may be in host memory; None: where they are.
        """
        self._plans = {part.master: _plan(part, device or part.master.device, orthogonal) for part in partitions}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Step on the parameters that have gradients; all ranks of a partition's group must call it alike."""
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
        for shape, offsets in plan.whole.items():
            batch = torch.stack([update[at : at + shape.numel].view(shape) for at in offsets])
            for at, made in zip(offsets, orthogonalized(batch), strict=True):
                update[at : at + shape.numel] = made.reshape(-1)
        if plan.exchange is not None:
            plan.exchange.orthogonalize(update)
        master.mul_(1 - group["lr"] * group["weight_decay"])
        master.add_(update.view_as(master).to(master.device), alpha=-group["lr"])


def _plan(partition: Partition, device: torch.device, orthogonal: Callable[[str, tuple[int, ...]], bool]) -> _Plan:
    whole: dict[Matrices, list[int]] = {}
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
                whole.setdefault(shape, []).append(offset)
            else:
                cut.append(_Piece((piece.name, number), shape, low - number * shape.numel, high - low, offset))
    group = partition.group
    exchange = None
    if group is not None and dist.get_world_size(group) > 1:
        everyone: list[list[_Piece]] = [[] for _ in range(dist.get_world_size(group))]
        dist.all_gather_object(everyone, cut, group=group)
        exchange = _Exchange(everyone, group) if any(everyone) else None
    return _Plan(whole, exchange, device)


class _Exchange:
    """Matrices cut between the ranks of a group: each is brought together on one of them, and sent back."""

    def __init__(self, pieces: list[list[_Piece]], group: dist.ProcessGroup) -> None:
        """``pieces``: of each rank of the group."""
        self._group, rank = group, dist.get_rank(group)
        owners = _owners(pieces)
        #: Mine, in the order in which they go out: by owner.
        self._mine = sorted(pieces[rank], key=lambda piece: (owners[piece.key], piece.key))
        #: Of the matrices that are made here, in the order in which they come in: by holder.
        self._theirs = [
            piece for held in pieces for piece in sorted(held, key=lambda piece: piece.key) if owners[piece.key] == rank
        ]
        self._out = [sum(p.numel for p in self._mine if owners[p.key] == to) for to in range(len(pieces))]
        self._in = [sum(p.numel for p in held if owners[p.key] == rank) for held in pieces]
        self._owned: dict[Matrices, list[tuple[str, int]]] = {}
        for piece in self._theirs:
            keys = self._owned.setdefault(piece.shape, [])
            if piece.key not in keys:
                keys.append(piece.key)

    def orthogonalize(self, update: torch.Tensor) -> None:
        """Replace this rank's pieces of an update by those of the orthogonalised matrices; collective."""
        going = _joined([update[p.offset : p.offset + p.numel] for p in self._mine], update)
        coming = update.new_empty(sum(self._in))
        dist.all_to_all_single(coming, going, self._in, self._out, group=self._group)
        parts = list(coming.split([piece.numel for piece in self._theirs]))
        for shape, keys in self._owned.items():
            batch = update.new_empty(len(keys), shape.numel)
            rows = {key: batch[number] for number, key in enumerate(keys)}
            held = [(piece, number) for number, piece in enumerate(self._theirs) if piece.shape == shape]
            for piece, number in held:
                rows[piece.key][piece.start : piece.start + piece.numel] = parts[number]
            batch.copy_(orthogonalized(batch.view(-1, *shape)).reshape(batch.shape))
            for piece, number in held:
                parts[number] = rows[piece.key][piece.start : piece.start + piece.numel]
        back = torch.empty_like(going)
        dist.all_to_all_single(back, _joined(parts, update), self._out, self._in, group=self._group)
        for piece, part in zip(self._mine, back.split([p.numel for p in self._mine]), strict=True):
            update[piece.offset : piece.offset + piece.numel] = part


def _joined(parts: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    return torch.cat(parts) if parts else like.new_empty(0)


def _owners(pieces: list[list[_Piece]]) -> dict[tuple[str, int], int]:
    """The rank that makes each matrix: of those that hold some of it, the one with the least to do so far."""
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
