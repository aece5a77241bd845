"""Weights that hold several matrices, one below another, so that one product does the work of all."""

#: How many, by the last part of the parameter's name.
_FUSED = {"gate_up_proj": 2, "qkv_proj": 3, "kv_proj": 2}


def matrices_in(name: str) -> int:
    """How many matrices of the same size a weight of such a name holds."""
    return _FUSED.get(name.removesuffix(".weight").rsplit(".", 1)[-1], 1)
