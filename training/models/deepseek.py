"""DeepSeek-V3 and V2 (arXiv 2412.19437, 2405.04434): latent attention, leading dense layers, MoE layers, MTP.

Module names follow the in-memory layout of transformers' ``DeepseekV3ForCausalLM`` (transformers >= 5, experts
stacked). State dicts are therefore interchangeable, and DeepSpeed's AutoEP recognizes the layers. As in the released
weights, the multi-token prediction (MTP) modules are extra layers after the main model's last layer.

Shape suffixes: B sequences, T positions, D hidden size, E experts. All are listed in :mod:`training.layers`.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import nn

from configs.schema.models.deepseek import DeepseekSection
from training.layers.block import Layer
from training.layers.feed_forward import FeedForward
from training.layers.init import draw_normal, fill_vector
from training.layers.kv_cache import LayerCache
from training.layers.linear import Linear
from training.layers.lm_head import OutputHead
from training.layers.mla import MultiHeadLatentAttention
from training.layers.moe import MixtureOfExperts
from training.layers.norms import RMSNorm
from training.layers.packed_documents import Documents
from training.layers.rope import RotaryTable, rotary_table
from training.layers.router import Router, balance_losses, record_routing
from training.models.causal_lm import CausalLM, Decoder, locate


class DecoderLayer(Layer):
    """Latent attention followed by a feed-forward layer or a mixture of experts, each with a pre-norm."""

    def __init__(self, config: DeepseekSection, index: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = MultiHeadLatentAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if index < config.first_k_dense_replace:
            self.mlp: nn.Module = FeedForward(config.hidden_size, config.intermediate_size, config.mlp_bias)
        else:
            self.router = Router(config)
            self.mlp = MixtureOfExperts(config, self.router)

    def forward(
        self,
        x_BTD: torch.Tensor,
        rope: RotaryTable,
        documents: Documents | None = None,
        cache: LayerCache | None = None,
    ) -> torch.Tensor:
        """Map [B, T, D] -> [B, T, D]. The arguments are the same as in :class:`MultiHeadLatentAttention`."""
        return self.apply_sublayers(
            x_BTD,
            lambda x_BTD: x_BTD + self.self_attn(self.input_layernorm(x_BTD), rope, documents, cache),
            lambda x_BTD: x_BTD + self.mlp(self.post_attention_layernorm(x_BTD)),
        )

    def compile_regions(self) -> None:
        """Compile the QKV projections, the dense or shared feed-forward layer, and (on GPU) the experts' activation.

        Routing, communication between ranks and the attention kernels are not compiled.
        """
        attention, mlp = self.self_attn, self.mlp
        attention.expand = torch.compile(attention.expand)  # type: ignore[method-assign]
        dense = mlp.shared_experts if isinstance(mlp, MixtureOfExperts) else mlp
        if dense is not None:
            dense.compile()
        if isinstance(mlp, MixtureOfExperts):
            mlp.experts.activation = torch.compile(mlp.experts.activation)


class PredictionLayer(DecoderLayer):
    """One depth of multi-token prediction (V3, section 2.2).

    Each depth predicts one token further ahead than the previous depth, and shares the main model's embedding and head.
    The projection takes the embedding first, as in the released weights (the technical report puts it second). The
    layer's normalized output goes to the head and to the next depth.
    """

    def __init__(self, config: DeepseekSection, index: int) -> None:
        super().__init__(config, index)
        self.enorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.shared_head = nn.ModuleDict({"norm": RMSNorm(config.hidden_size, config.rms_norm_eps)})

    def predict(
        self,
        hidden_BTD: torch.Tensor,
        embedded_BTD: torch.Tensor,
        rope: RotaryTable,
        documents: Documents | None = None,
        cache: LayerCache | None = None,
    ) -> torch.Tensor:
        """Compute normalized hidden states from the previous depth's states and the embeddings of later tokens."""
        x_BTD = self.eh_proj(torch.cat((self.enorm(embedded_BTD), self.hnorm(hidden_BTD)), dim=-1))
        # Use __call__ so that hooks and compilation apply as for any layer.
        return self.shared_head["norm"](self(x_BTD, rope, documents, cache))


class DeepseekDecoder(Decoder):
    """Embedding, layers and final norm. ``layers`` also holds the multi-token prediction layers, at its end."""

    def __init__(self, config: DeepseekSection, vocab_size: int) -> None:
        super().__init__()
        self.rope_dim, self.rope_theta, self.yarn = config.qk_rope_head_dim, config.rope_theta, config.rope_scaling
        self.depth = config.num_hidden_layers
        self.cache_width = config.kv_lora_rank + config.qk_rope_head_dim  # a latent and a rotary key, shared by heads
        self.embed_tokens = nn.Embedding(vocab_size, config.hidden_size)
        layers: list[DecoderLayer] = [DecoderLayer(config, index) for index in range(self.depth)]
        layers += [PredictionLayer(config, self.depth + k) for k in range(config.num_nextn_predict_layers)]
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def layer_inputs(
        self, positions: torch.Tensor, documents: Documents | None
    ) -> tuple[RotaryTable, Documents | None]:
        return self.rotary_table(positions), documents

    def rotary_table(self, positions: torch.Tensor) -> RotaryTable:
        return rotary_table(positions, self.rope_dim, self.rope_theta, self.yarn)


def released_config(config: DeepseekSection, vocab_size: int) -> SimpleNamespace:
    """Return the recipe's fields under their names in transformers' ``DeepseekV3Config``. AutoEP looks them up."""
    return SimpleNamespace(**{**config.model_dump(), "vocab_size": vocab_size, "hidden_act": "silu"})


class DeepseekForCausalLM(CausalLM):
    """The decoder and its head, plus multi-token prediction and the routers' balancing losses in training."""

    section: DeepseekSection

    def __init__(self, config: DeepseekSection, vocab_size: int) -> None:
        decoder = DeepseekDecoder(config, vocab_size)
        super().__init__(config, decoder, OutputHead(config.hidden_size, vocab_size), config.tie_word_embeddings)
        self.config = released_config(config, vocab_size)

    @property
    def routers(self) -> dict[str, Router]:
        """The router of every MoE layer, by layer name."""
        layers = enumerate(self.model.blocks)
        return {f"model.layers.{index}": layer.router for index, layer in layers if hasattr(layer, "router")}

    @property
    def prediction_layers(self) -> list[PredictionLayer]:
        """The multi-token prediction layers. The first predicts one token further ahead than the main model."""
        return cast(list[PredictionLayer], list(self.model.layers)[self.model.depth :])

    def forward(
        self,
        input_ids_BT: torch.Tensor,
        targets: Sequence[torch.Tensor] | None = None,
        starts: torch.Tensor | None = None,
        balance: Sequence[str] = (),
        *,
        per_token: bool = False,
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """Map token ids [B, T] to logits [B, T, V] in the model's dtype or, given ``targets``, to the summed losses.

        Args:
            input_ids_BT: token ids.
            targets: labels [B, T] for the main model, then for each depth of multi-token prediction. The labels of
                depth k are shifted by k more positions. Depths without labels are not computed.
            starts: where documents begin (see :class:`Documents`). If None, a token attends to all tokens before it.
            per_token: whether to return the main model's loss for each target, [B, T] with 0 for ignored labels, rather
                than their sum.
            balance: names of the balancing losses to compute (see ``BALANCE_LOSSES``).

        Returns:
            Logits, or losses by name: ``cross_entropy`` and ``mtp_1`` ... summed over their targets in nats, and the
            balancing losses summed over layers. In training, the routers also count tokens per expert.
        """
        if targets is None:
            return super().forward(input_ids_BT, starts=starts)
        positions, documents = locate(input_ids_BT, starts, None)
        layer_inputs = self.model.layer_inputs(positions, documents)
        routers = list(self.routers.values()) if self.training else []
        with record_routing(routers):
            hidden_BTD = self.model(input_ids_BT, positions, layer_inputs)
            losses = {"cross_entropy": self.lm_head(hidden_BTD, targets[0], per_token)}
            for depth, (layer, labels) in enumerate(zip(self.prediction_layers, targets[1:], strict=False), start=1):
                # The last positions wrap around to the first tokens. The causal mask and the ignored labels keep these
                # from affecting any prediction.
                ahead_BTD = self.model.embed_tokens(input_ids_BT.roll(-depth, dims=1))
                hidden_BTD = layer.predict(hidden_BTD, ahead_BTD, *layer_inputs)
                losses[f"mtp_{depth}"] = self.lm_head(hidden_BTD, labels)
        return {**losses, **balance_losses(routers, balance, len(input_ids_BT))}


@torch.no_grad()
def init_weights(model: Any, seed: int, experts: range | None = None) -> None:
    """Initialize every parameter and buffer in place:

    | parameters                                                        | value                         |
    |-------------------------------------------------------------------|-------------------------------|
    | embeddings, head, projections, gate, experts, noise, eh_proj      | N(0, initializer_range)       |
    | norms                                                             | 1                             |
    | biases of projections                                             | 0                             |
    | e_score_correction_bias                                           | 0                             |

    In V3 and V2, initializer_range is 0.006. Each parameter, and each expert in a stack [E, ...], is drawn on its own
    device from its own generator, seeded with ``seed`` and its name. The values therefore do not depend on the order of
    the modules or on which other modules exist, and are the same in fp32 and bf16 up to rounding.

    Args:
        model: a model with a ``config``, or the part of such a model that a process needs.
        seed: a non-negative seed.
        experts: the experts whose weights are needed, or None for all of them. Other experts stay uninitialized. Their
            pages are never written, so they take up no memory.
    """
    std = model.config.initializer_range
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            fill_vector(parameter, name)
        elif parameter.dim() == 2:
            draw_normal(parameter, f"{seed}/{name}", std)
        else:
            for expert in experts or range(len(parameter)):
                draw_normal(parameter[expert], f"{seed}/{name}/{expert}", std)
    for buffer in model.buffers():
        buffer.zero_()
