"""Weights under Hugging Face's on-disk names into a built model."""

import re
from collections.abc import Iterable

import torch
from torch import nn

from configs.errors import RequestError

_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight$")


@torch.no_grad()
def load_weights(model: nn.Module, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Copy weights into a model in place, a tensor at a time; experts go into their stacks.

    Args:
        model: any model whose names are Hugging Face's in memory (experts stacked as ``gate_up_proj``, ``down_proj``).
        weights: (on-disk name, tensor) as ``checkpoint.read_weights`` yields them.

    Raises:
        RequestError: a weight that the model does not have, or of another shape, or one that stays without a value.
    """
    targets = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    expected = {name: tensor.shape[0] * (2 if "gate_up" in name else 1) if ".experts." in name else 1
                for name, tensor in targets.items()}  # fmt: skip
    for name, tensor in weights:
        key, target = _find(targets, name)
        if target is None or target.shape != tensor.shape:
            found = "nothing" if target is None else f"shape {tuple(target.shape)}"
            raise RequestError(f"the weights hold {name} of shape {tuple(tensor.shape)}, where the model has {found}")
        target.copy_(tensor)
        expected[key] -= 1
    tied = {id(targets[name]) for name, left in expected.items() if left == 0}
    missing = [name for name, left in expected.items() if left > 0 and id(targets[name]) not in tied]
    if missing:
        raise RequestError(f"the weights lack {missing[0]} ({len(missing)} missing in all)")


def _find(targets: dict[str, torch.Tensor], name: str) -> tuple[str, torch.Tensor | None]:
    """The tensor that a weight goes into, a view of its stack for an expert's, and the key it is counted under."""
    match = _EXPERT.match(name)
    if not match:
        return name, targets.get(name)
    key = f"{match[1]}.{'down_proj' if match[3] == 'down_proj' else 'gate_up_proj'}"
    stack = targets.get(key)
    if stack is None or int(match[2]) >= len(stack):
        return key, None
    expert = stack[int(match[2])]
    if match[3] == "down_proj":
        return key, expert
    gate, up = expert.chunk(2, dim=0)
    return key, gate if match[3] == "gate_proj" else up
