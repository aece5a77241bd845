"""DeepSeek-V3 (arXiv 2412.19437): latent attention, leading dense layers, then mixtures of experts.

Modules carry the names of transformers' ``DeepseekV3ForCausalLM`` in its in-memory layout (transformers >= 5, experts
stacked), so that a state dict of either loads into the other, and DeepSpeed's AutoEP knows the layers. Shape suffixes
are listed in :mod:`training.layers`.
"""

import zlib
from functools import partial
from types import SimpleNamespace
from typing import Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from configs.schema.model import ModelSection
from training.layers.feed_forward import FeedForward
from training.layers.mla import MultiHeadLatentAttention
from training.layers.moe import MixtureOfExperts
from training.layers.norms import RMSNorm
from training.layers.positions import Rotation, rotation

Checkpointing = Literal["none", "full"]

#: Which experts were chosen is kept from the forward pass. Computed again, a near-tie could fall the other way: the
#: gradient would then be another function's, and under expert parallelism the ranks' exchanges would no longer match.
_keep_routing = partial(create_selective_checkpoint_contexts, [torch.ops.aten.topk.default])


class DecoderLayer(nn.Module):
    """Attention and a feed-forward layer or mixture of experts, each on a normalised residual stream."""

    def __init__(self, config: ModelSection, index: int) -> None:
        super().__init__()
        dense = index < config.first_k_dense_replace
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = MultiHeadLatentAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config.hidden_size, config.intermediate_size) if dense else MixtureOfExperts(config)

    def forward(self, x_BTD: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), rotation)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class Decoder(nn.Module):
    """Embedding, layers and final norm: token ids [B, T] -> hidden states [B, T, D]."""

    def __init__(self, config: ModelSection, vocab_size: int) -> None:
        super().__init__()
        self.rope_dim, self.rope_theta, self.yarn = config.qk_rope_head_dim, config.rope_theta, config.rope_scaling
        self.checkpointing: Checkpointing = "none"
        self.embed_tokens = nn.Embedding(vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, input_ids_BT: torch.Tensor) -> torch.Tensor:
        x_BTD = self.embed_tokens(input_ids_BT)
        positions_T = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device)
        turn = rotation(positions_T, self.rope_dim, self.rope_theta, self.yarn)
        for layer in self.layers:
            if self.checkpointing == "full" and self.training:
                x_BTD = checkpoint(layer, x_BTD, turn, use_reentrant=False, context_fn=_keep_routing)
            else:
                x_BTD = layer(x_BTD, turn)
        return self.norm(x_BTD)


class DeepseekForCausalLM(nn.Module):
    """A decoder and its head over ``vocab_size`` rows, which may exceed the tokenizer's (padding).

    Weights are undefined until :func:`init_weights` or ``load_state_dict``. ``config`` holds the recipe's fields
    under the names of transformers' ``DeepseekV3Config``, where AutoEP looks them up.
    """

    def __init__(self, config: ModelSection, vocab_size: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(**{**config.model_dump(), "vocab_size": vocab_size, "hidden_act": "silu"})
        self.model = Decoder(config, vocab_size)
        self.lm_head = nn.Linear(config.hidden_size, vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def set_checkpointing(self, mode: Checkpointing) -> None:
        """``full``: in training, keep each layer's input and its routing, and compute the rest again backwards."""
        self.model.checkpointing = mode

    def hidden(self, input_ids_BT: torch.Tensor) -> torch.Tensor:
        """Token ids [B, T] -> normalised hidden states [B, T, D]: what the head reads."""
        return self.model(input_ids_BT)

    def forward(self, input_ids_BT: torch.Tensor) -> torch.Tensor:
        """Token ids [B, T] -> logits [B, T, V] in the dtype of the model."""
        return self.lm_head(self.hidden(input_ids_BT))


@torch.no_grad()
def init_weights(model: DeepseekForCausalLM, seed: int) -> None:
    """Initialise every parameter and buffer in place:

    | what                                                    | value                         |
    |---------------------------------------------------------|-------------------------------|
    | embeddings, head, projections, gate, experts            | N(0, initializer_range)       |
    | norms                                                   | 1                             |
    | e_score_correction_bias                                 | 0                             |

    Each parameter has a generator of its own, seeded from (seed, its name), on its own device: the values do not depend
    on the order of the modules or on which others exist, and are the same in fp32 as in bf16 up to rounding.
    """
    std = model.config.initializer_range
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(1.0)
            continue
        generator = torch.Generator(parameter.device).manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
        drawn = torch.empty(parameter.shape, dtype=torch.float32, device=parameter.device)
        parameter.copy_(drawn.normal_(0.0, std, generator=generator))
    for buffer in model.buffers():
        buffer.zero_()
