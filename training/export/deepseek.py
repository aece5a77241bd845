"""DeepSeek-V3 and V2 as released on the Hugging Face hub: names of weights, and ``config.json``.

In memory experts are stacked, as in transformers >= 5; on disk every expert has tensors of its own. The modules of
multi-token prediction carry copies of the embedding and the head there.
"""

from typing import Any

from pydantic import ValidationError

from configs.errors import RequestError
from configs.schema.models.deepseek import DeepseekSection
from training.export.names import NameTable, Stack

_LAYER = "model.layers.{}."
_ATTENTION = (
    "q_proj.weight",
    "q_a_proj.weight",
    "q_a_proj.bias",
    "q_a_layernorm.weight",
    "q_b_proj.weight",
    "kv_a_proj_with_mqa.weight",
    "kv_a_proj_with_mqa.bias",
    "kv_a_layernorm.weight",
    "kv_b_proj.weight",
    "o_proj.weight",
    "o_proj.bias",
)
_FEED_FORWARD = [f"{name}_proj.{kind}" for name in ("gate", "up", "down") for kind in ("weight", "bias")]

TABLE = NameTable(
    "DeepSeek's released format",
    same=[
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
        *(f"{_LAYER}self_attn.{name}" for name in _ATTENTION),
        *(f"{_LAYER}mlp.{name}" for name in _FEED_FORWARD),
        *(f"{_LAYER}mlp.shared_experts.{name}" for name in _FEED_FORWARD),
        *(f"{_LAYER}mlp.gate.{name}" for name in ("weight", "e_score_correction_bias")),
        *(f"{_LAYER}{name}.weight" for name in ("input_layernorm", "post_attention_layernorm")),
        *(f"{_LAYER}{name}.weight" for name in ("enorm", "hnorm", "eh_proj", "shared_head.norm")),
    ],
    stacks=[
        Stack(
            f"{_LAYER}mlp.experts.gate_up_proj",
            (f"{_LAYER}mlp.experts.{{}}.gate_proj.weight", f"{_LAYER}mlp.experts.{{}}.up_proj.weight"),
        ),
        Stack(f"{_LAYER}mlp.experts.down_proj", (f"{_LAYER}mlp.experts.{{}}.down_proj.weight",)),
    ],
    copies={
        f"{_LAYER}embed_tokens.weight": "model.embed_tokens.weight",
        f"{_LAYER}shared_head.head.weight": "lm_head.weight",
    },
)

#: Keys of the recipe's model section that config.json has under the same name.
_SAME_KEYS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "moe_intermediate_size",
    "n_routed_experts",
    "n_shared_experts",
    "num_experts_per_tok",
    "scoring_func",
    "topk_method",
    "n_group",
    "topk_group",
    "first_k_dense_replace",
    "norm_topk_prob",
    "routed_scaling_factor",
    "num_nextn_predict_layers",
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "rope_theta",
    "attention_bias",
    "rms_norm_eps",
    "initializer_range",
    "tie_word_embeddings",
    "max_position_embeddings",
)


def released_config(model: DeepseekSection, vocab_size: int) -> dict[str, Any]:
    """``config.json`` of a model, as its release would have it.

    Raises:
        RequestError: neither release has such a model; the message names the key.
    """
    kind = _release(model)
    config: dict[str, Any] = {key: getattr(model, key) for key in _SAME_KEYS}
    yarn = model.rope_scaling
    return {
        "architectures": [{"deepseek_v3": "DeepseekV3ForCausalLM", "deepseek_v2": "DeepseekV2ForCausalLM"}[kind]],
        "model_type": kind,
        **config,
        **({"mlp_bias": model.mlp_bias} if kind == "deepseek_v2" else {}),
        "vocab_size": vocab_size,
        "num_key_value_heads": model.num_attention_heads,
        "hidden_act": "silu",
        "moe_layer_freq": 1,
        "rope_scaling": None if yarn is None else {"type": "yarn", **yarn.model_dump()},
    }


def model_section(config: dict[str, Any]) -> DeepseekSection:
    """The recipe's model section of a released ``config.json``; the way back from :func:`released_config`.

    Raises:
        RequestError: it asks for something that the family here does not have.
    """
    kind = config.get("model_type")
    if kind not in ("deepseek_v2", "deepseek_v3"):
        raise RequestError(f"config.json: model_type is {kind!r}; deepseek_v2 and deepseek_v3 are known")
    for key, wanted in (("hidden_act", "silu"), ("moe_layer_freq", 1)):
        if config.get(key, wanted) != wanted:
            raise RequestError(f"config.json: {key} is {config[key]!r}, and only {wanted!r} is known")
    if kind == "deepseek_v2" and config.get("norm_topk_prob"):
        raise RequestError("config.json: norm_topk_prob is true, which the released code of deepseek_v2 does not do")
    # What V2's configuration leaves out is what its code does; a null is an absence.
    fields: dict[str, Any] = {"norm_topk_prob": False, "n_shared_experts": 0}
    fields |= (
        {"scoring_func": "softmax", "topk_method": "greedy"} if kind == "deepseek_v2" else {"norm_topk_prob": True}
    )
    fields |= {key: config[key] for key in (*_SAME_KEYS, "mlp_bias", "vocab_size") if config.get(key) is not None}
    fields |= _rope(config)
    try:
        return DeepseekSection(**fields)
    except ValidationError as error:
        fault = error.errors()[0]
        raise RequestError(f"config.json: {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """``rope_theta`` and ``rope_scaling`` from either of the two forms that configurations have them in."""
    scaling = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = scaling.pop("rope_theta", config.get("rope_theta"))
    found = {} if theta is None else {"rope_theta": theta}
    # Older configurations say "type", newer ones "rope_type", some both.
    kinds = {scaling.pop(key) for key in ("type", "rope_type") if key in scaling}
    if not kinds or kinds == {"default"}:
        return found
    if kinds != {"yarn"}:
        raise RequestError(f"config.json: RoPE of type {', '.join(sorted(map(str, kinds)))}; only yarn is known")
    return {**found, "rope_scaling": scaling}


def _release(model: DeepseekSection) -> str:
    """Which release a model is of."""
    refused = {
        "router_noise": model.router_noise is not None and model.router_noise.kind == "learned",
        "adaptive_experts": model.adaptive_experts is not None,
    }
    if model.scoring_func == "sigmoid" and model.topk_method == "noaux_tc":
        kind = "deepseek_v3"
        refused["mlp_bias"] = model.mlp_bias
    elif model.scoring_func == "softmax" and model.topk_method != "noaux_tc":
        kind = "deepseek_v2"
        refused["norm_topk_prob"] = model.norm_topk_prob
        refused["num_nextn_predict_layers"] = model.num_nextn_predict_layers > 0
    else:
        raise RequestError(
            f"no DeepSeek release has model.scoring_func={model.scoring_func} with model.topk_method="
            f"{model.topk_method}: it cannot be exported"
        )
    for key, wrong in refused.items():
        if wrong:
            raise RequestError(f"{kind} has no model.{key} as this model has it: it cannot be exported")
    return kind
