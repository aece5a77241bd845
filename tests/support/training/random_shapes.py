"""Random small DeepSeek configurations, drawn so that every switch has each of its values often enough."""

import random
from collections import Counter
from typing import Any

from configs.schema.models.deepseek import DeepseekSection, YarnSection
from tests.support.training.shapes import small

YARNS = {
    "none": None,
    "even": YarnSection(factor=8.0, original_max_position_embeddings=16),
    "uneven": YarnSection(factor=4.0, original_max_position_embeddings=64, mscale=0.707, mscale_all_dim=1.2),
    "without": YarnSection(factor=4.0, original_max_position_embeddings=32, mscale=0.0, mscale_all_dim=0.0),
}
COMMON: dict[str, list[Any]] = {
    "q_lora_rank": [None, 24],
    "yarn": list(YARNS),
    "n_shared_experts": [0, 1, 2],
    "first_k_dense_replace": [0, 1, 3],
    "tie_word_embeddings": [False, True],
    "attention_bias": [False, True],
    "num_attention_heads": [2, 4],
    "qk_nope_head_dim": [8, 12],
    "v_head_dim": [8, 16],
    "num_experts_per_tok": [1, 2, 3],
    "routed_scaling_factor": [1.0, 2.5],
    "moe_intermediate_size": [12, 13, 16],
    "rms_norm_eps": [1e-6, 1e-3],
    "groups": [(1, 1), (2, 1), (4, 2), (4, 3)],
}
# V2 in transformers rotates complex numbers, which needs an even width.
V3: dict[str, list[Any]] = {**COMMON, "norm_topk_prob": [True, False], "qk_nope_head_dim": [7, 8, 12]}
V2: dict[str, list[Any]] = {**COMMON, "mlp_bias": [False, True]}
LEAST = 5


def draw(switches: dict[str, list[Any]], number: int, seed: int, **fixed: Any) -> list[DeepseekSection]:
    """``number`` configurations: each switch takes its values in turn, in a separately shuffled order."""
    generator = random.Random(seed)
    columns = {}
    for name, values in switches.items():
        column = (values * (-(-number // len(values))))[:number]
        generator.shuffle(column)
        counts = Counter(map(str, column))
        assert min(counts.values()) >= LEAST and len(counts) == len(values), (name, counts)
        columns[name] = column
    return [build({name: column[i] for name, column in columns.items()}, fixed) for i in range(number)]


def build(chosen: dict[str, Any], fixed: dict[str, Any]) -> DeepseekSection:
    chosen = {**chosen, **fixed}
    groups, kept = chosen.pop("groups")
    if fixed.get("scoring_func") == "softmax":
        chosen["topk_method"] = "group_limited_greedy" if groups > 1 else "greedy"
    return small(
        num_hidden_layers=3,
        n_group=groups,
        topk_group=kept,
        rope_scaling=YARNS[chosen.pop("yarn")],
        n_routed_experts=12,
        **chosen,
    )
