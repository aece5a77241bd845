"""DeepSeek-V3 and V2 as released on the Hugging Face Hub: weight names and ``config.json``.

In memory, experts are stacked, as in transformers >= 5. On disk, every expert has separate tensors, and the multi-token
prediction modules have copies of the embedding and the head.
"""

from typing import Any

from artefacts.errors import RequestError
from configs.schema.models.deepseek import DeepseekSection, YarnSection
from training.export import config_json
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
    # RoPE tables, which older code saved with the weights.
    ignored=[f"{_LAYER}self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"],
    prefix="model.",
)

#: Keys that have the same name in the recipe's model section and in config.json.
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

#: Defaults for keys that are missing from config.json, by model_type.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "deepseek_v3": {
        "vocab_size": 129_280,
        "norm_topk_prob": True,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "n_group": 8,
        "topk_group": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 3,
        "routed_scaling_factor": 2.5,
        "q_lora_rank": 1536,
    },
    "deepseek_v2": {
        "vocab_size": 102_400,
        "norm_topk_prob": False,
        "scoring_func": "softmax",
        "topk_method": "greedy",
        "n_shared_experts": 2,
        "first_k_dense_replace": 0,
        "routed_scaling_factor": 1.0,
        "q_lora_rank": 1536,
        "max_position_embeddings": 2048,
    },
}
#: The meaning of null, by key.
_NULLS: dict[str, Any] = {"n_shared_experts": 0, "n_group": 1, "topk_group": 1, "q_lora_rank": None}
#: Keys that change the model's computation, and the only supported value of each.
_SUPPORTED: dict[str, Any] = {"hidden_act": "silu", "moe_layer_freq": 1}
_SUPPORTED_OF: dict[str, dict[str, Any]] = {
    "deepseek_v3": {
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "rope_interleave": True,
        "mlp_bias": False,
    },
    # The released code never normalizes, no matter what norm_topk_prob says.
    "deepseek_v2": {"scoring_func": "softmax", "norm_topk_prob": False},
}


def released_config(model: DeepseekSection, vocab_size: int) -> dict[str, Any]:
    """Return a model's ``config.json`` in DeepSeek's V3 or V2 format, depending on the model.

    Raises:
        RequestError: neither release supports such a model; the message names the key.
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
    """Convert a released ``config.json`` to a recipe's model section: the inverse of :func:`released_config`.

    A missing key takes the release's default. Where a key may be null, null means that the model lacks the feature.

    Raises:
        RequestError: the configuration describes a model that this family does not support.
    """
    kind = config.get("model_type")
    if kind not in _DEFAULTS:
        known = " and ".join(_DEFAULTS)
        raise RequestError(f"config.json: model_type is {kind!r}, but model.family=deepseek reads {known}")
    config_json.require(config, {**_SUPPORTED, **_SUPPORTED_OF[kind]})
    if (heads := config.get("num_key_value_heads")) not in (None, config.get("num_attention_heads")):
        raise RequestError(f"config.json: num_key_value_heads is {heads!r}, but only num_attention_heads is supported")
    nulls = {key: value for key, value in _NULLS.items() if key in config}
    values = {key: config[key] for key in (*_SAME_KEYS, "mlp_bias", "vocab_size") if config.get(key) is not None}
    fields: dict[str, Any] = {**_DEFAULTS[kind], **nulls, **values, **_rope(config)}
    if fields["topk_method"] == "greedy":
        fields |= {"n_group": 1, "topk_group": 1}  # greedy selection ignores groups
    elif kind == "deepseek_v2" and fields["topk_method"] != "group_limited_greedy":
        raise RequestError(f"config.json: topk_method is {fields['topk_method']!r}, which deepseek_v2 does not have")
    return config_json.section(DeepseekSection, fields)


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Read ``rope_theta`` and ``rope_scaling`` from a configuration in the older or the newer form.

    If a configuration has both ``rope_scaling`` and ``rope_parameters``, the former takes precedence, as in
    transformers.
    """
    key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    scaling = {name: value for name, value in (config.get(key) or {}).items() if value is not None}
    theta = scaling.pop("rope_theta", config.get("rope_theta"))
    fields = {} if theta is None else {"rope_theta": theta}
    # Older configurations have "type", newer ones have "rope_type", and some have both.
    kinds = {scaling.pop(name) for name in ("type", "rope_type") if name in scaling}
    if not kinds or kinds == {"default"}:
        return fields
    if kinds != {"yarn"}:
        raise RequestError(
            f"config.json: {key} is of type {', '.join(sorted(map(str, kinds)))}, but only yarn is supported"
        )
    for name, plain in (("truncate", True), ("partial_rotary_factor", 1.0)):
        if scaling.get(name) == plain:
            del scaling[name]
    if "factor" not in scaling:
        raise RequestError(f"config.json: {key} has no factor")
    if unknown := sorted(scaling.keys() - YarnSection.model_fields.keys()):
        raise RequestError(f"config.json: {key} has {unknown[0]}={scaling[unknown[0]]!r}, which is not supported")
    # If these are missing, the entire correction goes into the tables. The recipe expresses that as 0.
    absent = {"mscale": 0.0, "mscale_all_dim": 0.0}
    if (length := config.get("max_position_embeddings")) is not None:
        absent["original_max_position_embeddings"] = length
    return {**fields, "rope_scaling": {**absent, **scaling}}


def _release(model: DeepseekSection) -> str:
    """Return the release that a model corresponds to, as a ``model_type``.

    Raises:
        RequestError: neither release supports the model.
    """
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
            f"no DeepSeek release combines model.scoring_func={model.scoring_func} with model.topk_method="
            f"{model.topk_method}: it cannot be exported"
        )
    for key, wrong in refused.items():
        if wrong:
            raise RequestError(f"{kind} does not support this model's model.{key}: it cannot be exported")
    return kind
