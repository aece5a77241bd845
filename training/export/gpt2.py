"""GPT-2 as released on the Hugging Face Hub (transformers' ``GPT2LMHeadModel``): weight names and ``config.json``.

On disk, matrices are transposed, and every linear layer and norm has a bias. In some files, names lack the prefix
``transformer.``. Old files also contain the causal mask.
"""

from typing import Any

from artefacts.errors import RequestError
from configs.schema.models.gpt import GptSection
from training.export import config_json
from training.export.names import NameTable

_LAYER, _RELEASED_LAYER = "model.layers.{}.", "transformer.h.{}."
_NORMS = {"input_layernorm": "ln_1", "post_attention_layernorm": "ln_2"}
_MATRICES = {
    "self_attn.qkv_proj": "attn.c_attn",
    "self_attn.o_proj": "attn.c_proj",
    "mlp.up_proj": "mlp.c_fc",
    "mlp.down_proj": "mlp.c_proj",
}
_OF_LAYERS = {_LAYER + ours: _RELEASED_LAYER + theirs for ours, theirs in {**_NORMS, **_MATRICES}.items()}
_WITH_BIAS = {"model.norm": "transformer.ln_f", **_OF_LAYERS}

TABLE = NameTable(
    "GPT-2's released format",
    same=["lm_head.weight"],
    renamed={
        "model.embed_tokens.weight": "transformer.wte.weight",
        "model.positions.weight": "transformer.wpe.weight",
        **{f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in _WITH_BIAS.items() for kind in ("weight", "bias")},
    },
    transposed=[f"{_LAYER}{name}.weight" for name in _MATRICES],
    zeros=[f"{name}.bias" for name in _WITH_BIAS],
    ignored=[f"{_RELEASED_LAYER}attn.{name}" for name in ("bias", "masked_bias")],
    prefix="transformer.",
)

#: Keys of the recipe's model section, and their names in config.json.
_KEYS = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "activation": "activation_function",
    "layer_norm_eps": "layer_norm_epsilon",
    "initializer_range": "initializer_range",
    "max_position_embeddings": "n_positions",
    "tie_word_embeddings": "tie_word_embeddings",
}
_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
#: Defaults for keys that are missing from config.json.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 50_257,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "activation_function": "gelu_new",
    **dict.fromkeys(_DROPOUTS, 0.1),
}
_ACTIVATIONS = ("relu", "gelu", "gelu_new")
#: Aliases of activation functions -> their names in recipes.
_ALIASES = {"gelu_pytorch_tanh": "gelu_new"}
#: Keys that change the model's computation, and the only supported value of each.
_SUPPORTED = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}


def released_config(model: GptSection, vocab_size: int) -> dict[str, Any]:
    """Return a model's ``config.json`` as in transformers' ``GPT2Config``.

    That format always has biases. If the model has none, zeros are exported.

    Raises:
        RequestError: GPT-2's format does not support the model; the message names the key.
    """
    supported = {"positions": ("learned",), "window": (None,), "norm": ("layer",), "activation": _ACTIVATIONS}
    for key, values in supported.items():
        if (value := getattr(model, key)) not in values:
            raise RequestError(f"GPT-2's released format does not support model.{key}={value}: it cannot be exported")
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": vocab_size,
        **{name: getattr(model, key) for key, name in _KEYS.items()},
        **dict.fromkeys(_DROPOUTS, model.dropout),
    }


def model_section(config: dict[str, Any]) -> GptSection:
    """Convert a released ``config.json`` to a recipe's model section: the inverse of :func:`released_config`.

    Raises:
        RequestError: the configuration describes a model that this family does not support.
    """
    if config.get("model_type") != "gpt2":
        raise RequestError(f"config.json: model_type is {config.get('model_type')!r}, but model.family=gpt reads gpt2")
    config_json.require(config, _SUPPORTED)
    released = {**_DEFAULTS, **config}
    fields = {key: released[name] for key, name in _KEYS.items() if released.get(name) is not None}
    if isinstance(activation := fields.get("activation"), str):
        fields["activation"] = _ALIASES.get(activation, activation)
    # Dropout does not affect the weights, so if the three dropout values differ, use the first.
    fields |= {"dropout": released[_DROPOUTS[0]], "vocab_size": released["vocab_size"]}
    return config_json.section(GptSection, fields, _KEYS)
