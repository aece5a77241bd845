"""First values of parameters: each from a generator of its own, seeded from what it is called.

The values do not depend on the order of the modules or on which others exist, and are the same in fp32 as in bf16 up to
rounding.
"""

import math
import zlib

import torch


def draw_normal(weight: torch.Tensor, called: str, std: float) -> None:
    """N(0, std), in place; ``called``: the seed and the parameter's name."""
    weight.copy_(_fresh(weight).normal_(0.0, std, generator=_generator(weight, called)))


def draw_xavier(weight_OI: torch.Tensor, called: str, matrices: int = 1) -> None:
    """Uniform with variance 2 / (in + out) (Glorot and Bengio, 2010), in place.

    ``matrices``: how many of the same size stand one below the other in the weight.
    """
    outputs, inputs = weight_OI.shape
    bound = math.sqrt(6.0 / (inputs + outputs / matrices))
    weight_OI.copy_(_fresh(weight_OI).uniform_(-bound, bound, generator=_generator(weight_OI, called)))


def _generator(weight: torch.Tensor, called: str) -> torch.Generator:
    return torch.Generator(weight.device).manual_seed(zlib.crc32(called.encode()))


def _fresh(weight: torch.Tensor) -> torch.Tensor:
    return torch.empty(weight.shape, dtype=torch.float32, device=weight.device)


#: How many, by the last part of the parameter's name.
_FUSED = {"gate_up_proj": 2, "qkv_proj": 3, "kv_proj": 2}


def matrices_in(name: str) -> int:
    """How many matrices of the same size a weight of such a name holds."""
    return _FUSED.get(name.removesuffix(".weight").rsplit(".", 1)[-1], 1)
