"""Names and shapes of the parameters of language models, as in the built models but without torch."""

from collections.abc import Iterator

from configs.schema.models import ModelSection
from configs.schema.models.deepseek import DeepseekSection
from configs.schema.models.gpt import GptSection

Shape = tuple[int, ...]
Named = Iterator[tuple[str, Shape]]


def parameter_shapes(model: ModelSection, vocab_size: int) -> Named:
    """Yield the name and shape of every parameter of a language model. Tied tables appear once, as the embedding."""
    match model:
        case DeepseekSection():
            yield from _tables(vocab_size, model.hidden_size, model.tie_word_embeddings)
            for layer in range(model.num_hidden_layers + model.num_nextn_predict_layers):
                for name, shape in _deepseek_layer(model, layer):
                    yield f"model.layers.{layer}.{name}", shape
            yield "model.norm.weight", (model.hidden_size,)
        case GptSection():
            yield from _tables(vocab_size, model.hidden_size, model.tie_word_embeddings)
            if model.positions == "learned":
                yield "model.positions.weight", (model.max_position_embeddings, model.hidden_size)
            for layer in range(model.num_hidden_layers):
                for name, shape in _gpt_layer(model):
                    yield f"model.layers.{layer}.{name}", shape
            yield from _norm("model.norm", model)
        case _:
            yield "model.embed_tokens.weight", (vocab_size, vocab_size)


def _tables(vocab_size: int, hidden: int, tied: bool) -> Named:
    yield "model.embed_tokens.weight", (vocab_size, hidden)
    if not tied:
        yield "lm_head.weight", (vocab_size, hidden)


def _linear(name: str, inputs: int, outputs: int, bias: bool = False) -> Named:
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)


def _deepseek_layer(model: DeepseekSection, layer: int) -> Named:
    hidden, bias, heads = model.hidden_size, model.attention_bias, model.num_attention_heads
    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield f"{norm}.weight", (hidden,)
    query, rank = heads * (model.qk_nope_head_dim + model.qk_rope_head_dim), model.q_lora_rank
    if rank is None:
        yield from _linear("self_attn.q_proj", hidden, query)
    else:
        yield from _linear("self_attn.q_a_proj", hidden, rank, bias)
        yield "self_attn.q_a_layernorm.weight", (rank,)
        yield from _linear("self_attn.q_b_proj", rank, query)
    latent = model.kv_lora_rank
    yield from _linear("self_attn.kv_a_proj_with_mqa", hidden, latent + model.qk_rope_head_dim, bias)
    yield "self_attn.kv_a_layernorm.weight", (latent,)
    yield from _linear("self_attn.kv_b_proj", latent, heads * (model.qk_nope_head_dim + model.v_head_dim))
    yield from _linear("self_attn.o_proj", heads * model.v_head_dim, hidden, bias)
    if layer < model.first_k_dense_replace:
        yield from _swiglu("mlp", hidden, model.intermediate_size, model.mlp_bias)
    else:
        yield from _mixture(model)
    if layer >= model.num_hidden_layers:
        for norm in ("enorm", "hnorm", "shared_head.norm"):
            yield f"{norm}.weight", (hidden,)
        yield from _linear("eh_proj", 2 * hidden, hidden)


def _mixture(model: DeepseekSection) -> Named:
    hidden, experts, width = model.hidden_size, model.n_routed_experts, model.moe_intermediate_size
    if model.router_noise is not None and model.router_noise.kind == "learned":
        yield from _linear("router.noise", hidden, experts)
    yield "mlp.gate.weight", (experts, hidden)
    yield "mlp.experts.gate_up_proj", (experts, 2 * width, hidden)
    yield "mlp.experts.down_proj", (experts, hidden, width)
    if model.n_shared_experts:
        yield from _swiglu("mlp.shared_experts", hidden, model.n_shared_experts * width, model.mlp_bias)


def _swiglu(name: str, hidden: int, width: int, bias: bool) -> Named:
    yield from _linear(f"{name}.gate_proj", hidden, width, bias)
    yield from _linear(f"{name}.up_proj", hidden, width, bias)
    yield from _linear(f"{name}.down_proj", width, hidden, bias)


def _gpt_layer(model: GptSection) -> Named:
    hidden, bias = model.hidden_size, model.bias
    yield from _norm("input_layernorm", model)
    yield from _norm("post_attention_layernorm", model)
    yield from _linear("self_attn.qkv_proj", hidden, 3 * hidden, bias)
    yield from _linear("self_attn.o_proj", hidden, hidden, bias)
    if model.activation == "swiglu":
        yield from _swiglu("mlp", hidden, model.width, bias)
    else:
        yield from _linear("mlp.up_proj", hidden, model.width, bias)
        yield from _linear("mlp.down_proj", model.width, hidden, bias)


def _norm(name: str, model: GptSection) -> Named:
    yield f"{name}.weight", (model.hidden_size,)
    if model.norm == "layer" and model.bias:
        yield f"{name}.bias", (model.hidden_size,)
