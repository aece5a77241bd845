"""Names of the adapters' parameters, and of the layers that can have adapters. They do not depend on torch.

A linear layer ``NAME`` with the weight ``NAME.weight`` has the adapter ``NAME.lora_A`` [r, in], ``NAME.lora_B``
[out, r] and, with DoRA, ``NAME.lora_magnitude`` [out]. The adapters of a layer's routed experts are stacked, as their
weights are, and belong to ``LAYER.expert_lora.gate_up_proj`` and ``LAYER.expert_lora.down_proj``: ``lora_A`` [E, r, in]
and ``lora_B`` [E, out, r].
"""

import re

A, B, MAGNITUDE = "lora_A", "lora_B", "lora_magnitude"
#: Child of a decoder layer that holds the adapters of its routed experts.
EXPERT_ADAPTERS = "expert_lora"
#: The routed experts' stacked weights, in memory.
EXPERT_WEIGHTS = ("gate_up_proj", "down_proj")

_LAYER = r"model\.layers\.\d+\."
#: Names of the linear layers in each group of targets, except for ``routed_experts``, which are not linear layers.
LINEAR_TARGETS = {
    "attention": re.compile(_LAYER + r"self_attn\.\w+_proj(_with_mqa)?"),
    "dense": re.compile(_LAYER + r"mlp\.\w+_proj"),
    "shared_experts": re.compile(_LAYER + r"mlp\.shared_experts\.\w+_proj"),
}


def is_adapter(name: str) -> bool:
    """Return whether a parameter belongs to an adapter."""
    return name.endswith((f".{A}", f".{B}", f".{MAGNITUDE}"))
