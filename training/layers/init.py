"""Initial values of parameters, each drawn from its own generator, seeded with its name.

The values do not depend on the order of the modules or on which others exist, and are the same in fp32 and bf16 up to
rounding.
"""

import math
import zlib

import torch


def fill_vector(vector: torch.Tensor, name: str) -> None:
    """Biases to 0 and weights of norms to 1, in place, by the name of the parameter."""
    vector.fill_(0.0 if name.endswith(".bias") else 1.0)


def draw_normal(weight: torch.Tensor, seed_name: str, std: float) -> None:
    """N(0, std), in place. ``seed_name``: the seed and the name of the parameter."""
    weight.copy_(_empty(weight).normal_(0.0, std, generator=_generator(weight, seed_name)))


def draw_xavier(weight_OI: torch.Tensor, seed_name: str, matrices: int = 1) -> None:
    """Uniform with variance 2 / (in + out) (Glorot and Bengio, 2010), in place.

    ``matrices``: number of matrices of the same size that are concatenated along the rows of the weight.
    """
    outputs, inputs = weight_OI.shape
    bound = math.sqrt(6.0 / (inputs + outputs / matrices))
    weight_OI.copy_(_empty(weight_OI).uniform_(-bound, bound, generator=_generator(weight_OI, seed_name)))


def _generator(weight: torch.Tensor, seed_name: str) -> torch.Generator:
    return torch.Generator(weight.device).manual_seed(zlib.crc32(seed_name.encode()))


def _empty(weight: torch.Tensor) -> torch.Tensor:
    return torch.empty(weight.shape, dtype=torch.float32, device=weight.device)


#: Number of concatenated matrices, by the last part of the parameter's name.
_FUSED = {"gate_up_proj": 2, "qkv_proj": 3, "kv_proj": 2}


def matrices_in(name: str) -> int:
    """Number of matrices of the same size that a weight of this name holds."""
    return _FUSED.get(name.removesuffix(".weight").rsplit(".", 1)[-1], 1)
