"""DeepSeek-V3 and V2 (arXiv 2412.19437, 2405.04434): latent attention, leading dense layers, mixtures of experts, MTP.

Modules carry the names of transformers' ``DeepseekV3ForCausalLM`` in its in-memory layout (transformers >= 5, experts
stacked), so that a state dict of either loads into the other, and DeepSpeed's AutoEP knows the layers; the modules of
multi-token prediction are the layers after the last, as in the released weights. Shape suffixes are listed in
:mod:`training.layers`.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import nn

from configs.schema.models.deepseek import DeepseekSection
from training.layers.activation_checkpointing import checkpointed
from training.layers.block import Layer, Layered
from training.layers.feed_forward import FeedForward
from training.layers.init import draw_normal
from training.layers.kv_cache import Cache, LayerCache
from training.layers.linear import Linear
from training.layers.lm_head import OutputHead
from training.layers.mla import MultiHeadLatentAttention
from training.layers.moe import MixtureOfExperts
from training.layers.norms import RMSNorm
from training.layers.packed_documents import Documents
from training.layers.rope import Rotation, rotation
from training.layers.router import Router, balance_losses, recorded


class DecoderLayer(Layer):
    """Attention and a feed-forward layer or mixture of experts, each on a normalised residual stream."""

    def __init__(self, config: DeepseekSection, index: int) -> None:
        super().__init__()
        dense = index < config.first_k_dense_replace
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = MultiHeadLatentAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if dense:
            self.mlp: nn.Module = FeedForward(config.hidden_size, config.intermediate_size, config.mlp_bias)
        else:
            self.router = Router(config)
            self.mlp = MixtureOfExperts(config, self.router)

    def forward(
        self,
        x_BTD: torch.Tensor,
        rotation: Rotation,
        documents: Documents | None = None,
        cache: LayerCache | None = None,
    ) -> torch.Tensor:
        mode = self.checkpointing if self.training else "none"
        if mode == "full":
            return checkpointed(self._whole, mode, x_BTD, rotation, documents, cache)
        x_BTD = checkpointed(self._attend, mode, x_BTD, rotation, documents, cache)
        return checkpointed(self._feed, mode, x_BTD)

    def _whole(
        self, x_BTD: torch.Tensor, rotation: Rotation, documents: Documents | None, cache: LayerCache | None
    ) -> torch.Tensor:
        return self._feed(self._attend(x_BTD, rotation, documents, cache))

    def _attend(
        self, x_BTD: torch.Tensor, rotation: Rotation, documents: Documents | None, cache: LayerCache | None
    ) -> torch.Tensor:
        return x_BTD + self.self_attn(self.input_layernorm(x_BTD), rotation, documents, cache)

    def _feed(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))

    def compile_regions(self) -> None:
        """Attention's way from hidden states to queries, keys and values, the dense or shared feed-forward layer, and
        on GPUs the experts' activation. Routing, exchange between ranks and the attention kernels stay as they are.
        """
        attention, mlp = self.self_attn, self.mlp
        attention.expand = torch.compile(attention.expand)  # type: ignore[method-assign]
        dense = mlp.shared_experts if isinstance(mlp, MixtureOfExperts) else mlp
        if dense is not None:
            dense.compile()
        if isinstance(mlp, MixtureOfExperts):
            mlp.experts.activation = torch.compile(mlp.experts.activation)


class PredictionLayer(DecoderLayer):
    """One depth of multi-token prediction (V3, section 2.2): from the depth before and the next token, one further on.

    Embedding and head are the main model's. The projection takes the embedding first, as the released weights do (the
    report writes it second), and hands its normalised result to the head and to the next depth.
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
        rotation: Rotation,
        documents: Documents | None = None,
        cache: LayerCache | None = None,
    ) -> torch.Tensor:
        """From the normalised hidden states of the depth before and the embeddings of the tokens so far ahead."""
        x_BTD = self.eh_proj(torch.cat((self.enorm(embedded_BTD), self.hnorm(hidden_BTD)), dim=-1))
        # Through __call__, so that hooks and compilation apply as to every layer.
        return self.shared_head["norm"](self(x_BTD, rotation, documents, cache))


class Decoder(Layered):
    """Embedding, layers and final norm: token ids [B, T] -> hidden states [B, T, D]."""

    def __init__(self, config: DeepseekSection, vocab_size: int) -> None:
        super().__init__()
        self.rope_dim, self.rope_theta, self.yarn = config.qk_rope_head_dim, config.rope_theta, config.rope_scaling
        self.depth = config.num_hidden_layers
        self.embed_tokens = nn.Embedding(vocab_size, config.hidden_size)
        layers: list[DecoderLayer] = [DecoderLayer(config, index) for index in range(self.depth)]
        layers += [PredictionLayer(config, self.depth + k) for k in range(config.num_nextn_predict_layers)]
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, input_ids_BT: torch.Tensor, turn: Rotation, documents: Documents | None, cache: Cache | None
    ) -> torch.Tensor:
        x_BTD = self.embed_tokens(input_ids_BT)
        for index, layer in enumerate(list(self.layers)[: self.depth]):
            x_BTD = layer(x_BTD, turn, documents, cache and cache.layer(index))
        return self.norm(x_BTD)

    def rotation(self, positions: torch.Tensor) -> Rotation:
        return rotation(positions, self.rope_dim, self.rope_theta, self.yarn)


def released_config(config: DeepseekSection, vocab_size: int) -> SimpleNamespace:
    """The recipe's fields under the names of transformers' ``DeepseekV3Config``, where AutoEP looks them up."""
    return SimpleNamespace(**{**config.model_dump(), "vocab_size": vocab_size, "hidden_act": "silu"})


class DeepseekForCausalLM(Layered):
    """A decoder and its head over ``vocab_size`` rows, which may exceed the tokenizer's (padding).

    Weights are undefined until :func:`init_weights` or ``load_state_dict``.
    """

    def __init__(self, config: DeepseekSection, vocab_size: int) -> None:
        super().__init__()
        self.section = config
        self.config = released_config(config, vocab_size)
        self.model = Decoder(config, vocab_size)
        self.lm_head = OutputHead(config.hidden_size, vocab_size)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def routers(self) -> dict[str, Router]:
        """Every expert layer's router by the name of its layer."""
        layers = enumerate(self.model.blocks)
        return {f"model.layers.{index}": layer.router for index, layer in layers if hasattr(layer, "router")}

    @property
    def prediction_layers(self) -> list[PredictionLayer]:
        """The modules of multi-token prediction, the first looks one token further than the main model."""
        return cast(list[PredictionLayer], list(self.model.layers)[self.model.depth :])

    def new_cache(self, sequences: int, capacity: int, layers: int | None = None) -> Cache:
        """Room for ``capacity`` tokens of each of ``sequences``, in the main model's layers or in so many."""
        attention = self.model.blocks[0].self_attn
        width = attention.latent_dim + attention.rope_dim
        return Cache(layers or self.model.depth, sequences, capacity, width, self.lm_head.weight.detach())

    def hidden(
        self, input_ids_BT: torch.Tensor, starts: torch.Tensor | None = None, cache: Cache | None = None
    ) -> torch.Tensor:
        """Token ids [B, T] -> normalised hidden states [B, T, D]: what the head reads.

        ``starts`` as in :class:`Documents`; with a ``cache`` the ids follow those that are in it, and the caller
        commits them.
        """
        documents, turn = self._places(input_ids_BT, starts, cache)
        return self.model(input_ids_BT, turn, documents, cache)

    def forward(
        self,
        input_ids_BT: torch.Tensor,
        targets: Sequence[torch.Tensor] | None = None,
        starts: torch.Tensor | None = None,
        balance: Sequence[str] = (),
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """Token ids [B, T] -> logits [B, T, V] in the dtype of the model; with ``targets`` the sums of the losses.

        Args:
            input_ids_BT: token ids.
            targets: labels [B, T] of the main model, then of each depth of multi-token prediction (depth k's stand k
                positions further on in the text); depths without are not run.
            starts: where documents begin, see :class:`Documents`; left out, every token sees all before it.
            balance: the balancing losses that are wanted, see ``BALANCE_LOSSES``.

        Returns:
            Logits, or by name: ``cross_entropy`` and ``mtp_1`` ... in nats over their targets, and the balancing
            losses, summed over the layers. Routers have then counted, in training.
        """
        if targets is None:
            return self.lm_head(self.hidden(input_ids_BT, starts))
        documents, turn = self._places(input_ids_BT, starts, None)
        routers = list(self.routers.values()) if self.training else []
        with recorded(routers):
            hidden_BTD = self.model(input_ids_BT, turn, documents, None)
            losses = {"cross_entropy": self.lm_head(hidden_BTD, targets[0])}
            for depth, (layer, labels) in enumerate(zip(self.prediction_layers, targets[1:], strict=False), start=1):
                # The last positions wrap round to tokens that nothing predicted is allowed to see: causality and labels
                # keep them out.
                ahead_BTD = self.model.embed_tokens(input_ids_BT.roll(-depth, dims=1))
                hidden_BTD = layer.predict(hidden_BTD, ahead_BTD, turn, documents)
                losses[f"mtp_{depth}"] = self.lm_head(hidden_BTD, labels)
        return {**losses, **balance_losses(routers, balance, len(input_ids_BT))}

    def _places(
        self, input_ids_BT: torch.Tensor, starts: torch.Tensor | None, cache: Cache | None
    ) -> tuple[Documents | None, Rotation]:
        samples, length = input_ids_BT.shape
        documents = None if starts is None else Documents(starts, samples, length)
        if documents is not None:
            positions = documents.positions()
        elif cache is not None:
            positions = cache.begin(length)
        else:
            positions = torch.arange(length, device=input_ids_BT.device)
        return documents, self.model.rotation(positions)


@torch.no_grad()
def init_weights(model: Any, seed: int, experts: range | None = None) -> None:
    """Initialise every parameter and buffer in place:

    | what                                                              | value                         |
    |-------------------------------------------------------------------|-------------------------------|
    | embeddings, head, projections, gate, experts, noise, eh_proj      | N(0, initializer_range)       |
    | norms                                                             | 1                             |
    | biases of projections                                             | 0                             |
    | e_score_correction_bias                                           | 0                             |

    The range is 0.006 in V3 and V2. Each parameter, and each expert of a stack [E, ...], has a generator of its own,
    seeded from (seed, its name), on its own device: the values do not depend on the order of the modules or on which
    others exist, and are the same in fp32 as in bf16 up to rounding.

    Args:
        model: with a ``config``; all of it, or what a process needs.
        seed: from 0.
        experts: those whose weights are needed; the others' stay undefined and, untouched, take no memory.
    """
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(0.0 if name.endswith(".bias") else 1.0)
        elif parameter.dim() == 2:
            draw_normal(parameter, f"{seed}/{name}", model.config.initializer_range)
        else:
            for expert in experts or range(len(parameter)):
                draw_normal(parameter[expert], f"{seed}/{name}/{expert}", model.config.initializer_range)
    for buffer in model.buffers():
        buffer.zero_()
