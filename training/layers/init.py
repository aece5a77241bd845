"""Parameter initialization. Each parameter has its own generator, seeded with the parameter's name.

The values therefore do not depend on the order of the modules or on which other modules exist. They are the same in
fp32 and bf16, up to rounding.
"""

import math
import zlib

import torch


def fill_vector(vector: torch.Tensor, name: str) -> None:
    """Fill a bias with 0 or a norm's weight with 1, in place. The parameter's name determines which."""
    vector.fill_(0.0 if name.endswith(".bias") else 1.0)


def draw_normal(weight: torch.Tensor, seed_name: str, std: float) -> None:
    """Fill a weight in place with draws from N(0, std). ``seed_name`` combines the seed and the parameter's name."""
    weight.copy_(_empty(weight).normal_(0.0, std, generator=_generator(weight, seed_name)))


def draw_xavier(weight_OI: torch.Tensor, seed_name: str, matrices: int = 1) -> None:
    """Fill a weight, in place, with uniform draws of variance 2 / (in + out) (Glorot and Bengio, 2010).

    ``matrices`` is the number of equally sized matrices that are concatenated along the weight's rows.
    """
    outputs, inputs = weight_OI.shape
    bound = math.sqrt(6.0 / (inputs + outputs / matrices))
    weight_OI.copy_(_empty(weight_OI).uniform_(-bound, bound, generator=_generator(weight_OI, seed_name)))


def draw_uniform(weight: torch.Tensor, seed_name: str, bound: float) -> None:
    """Fill a weight in place with draws from [-bound, bound)."""
    weight.copy_(_empty(weight).uniform_(-bound, bound, generator=_generator(weight, seed_name)))


def _generator(weight: torch.Tensor, seed_name: str) -> torch.Generator:
    return torch.Generator(weight.device).manual_seed(zlib.crc32(seed_name.encode()))


def _empty(weight: torch.Tensor) -> torch.Tensor:
    return torch.empty(weight.shape, dtype=torch.float32, device=weight.device)


#: Number of matrices that are concatenated in a fused parameter, by the last component of its name.
_FUSED = {"gate_up_proj": 2, "qkv_proj": 3, "kv_proj": 2}


def matrices_in(name: str) -> int:
    """Return the number of equally sized matrices that are fused in the weight with this name."""
    return _FUSED.get(name.removesuffix(".weight").rsplit(".", 1)[-1], 1)
