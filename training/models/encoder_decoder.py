"""The encoder-decoder Transformer (arXiv 1706.03762), which maps one text to another.

Shape suffixes are listed in :mod:`training.layers`. S counts source positions and T target positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from configs.schema.models.encoder_decoder import EncoderDecoderSection
from training.layers.block import LayerStack
from training.layers.kv_cache import Cache
from training.layers.lm_head import OutputHead
from training.layers.masks import Mask
from training.layers.multi_head import CrossAttentionKV, Source
from training.layers.position_embedding import PositionEmbedding
from training.layers.transformer_layer import TransformerLayer, make_norm
from training.models.encoder import Encoder


@dataclass(frozen=True)
class Encoded:
    """An encoded source: its keys and values for each decoder layer."""

    layers: list[CrossAttentionKV]


class Decoder(LayerStack):
    """Embedding and layers that cross-attend to a source: token ids [B, T] -> hidden states [B, T, D]."""

    def __init__(self, config: EncoderDecoderSection, vocab_size: int) -> None:
        super().__init__()
        self.dropout, self.window = config.dropout, config.window
        self.scale = config.hidden_size**0.5
        self.embed_tokens = nn.Embedding(vocab_size, config.hidden_size)
        self.positions = PositionEmbedding(config)
        layers = [TransformerLayer(config, config.norm_first, cross=True) for _ in range(config.depth_of_decoder)]
        self.layers = nn.ModuleList(layers)
        self.norm = make_norm(config) if config.norm_first else nn.Identity()

    def forward(
        self,
        input_ids_BT: torch.Tensor,
        positions: torch.Tensor,
        sources: Sequence[Source | CrossAttentionKV],
        cache: Cache | None,
    ) -> torch.Tensor:
        """Decode ids at ``positions`` ([T] or [B, T]). ``sources`` holds each layer's source for cross-attention."""
        x_BTD = self.positions.add_position_embedding(self.embed_tokens(input_ids_BT), positions, self.scale)
        if self.dropout and self.training:
            x_BTD = F.dropout(x_BTD, self.dropout)
        mask = Mask(True, self.window, self.positions.slopes(x_BTD.device))
        rope = self.positions.rotary_table(positions)
        for index, (layer, source) in enumerate(zip(self.layers, sources, strict=True)):
            x_BTD = layer(x_BTD, mask, rope, cache and cache.layer(index), source)
        out: torch.Tensor = self.norm(x_BTD)
        return out


class EncoderDecoder(LayerStack):
    """Encoder, decoder and head. Sources and targets share one vocabulary of ``vocab_size`` ids.

    Weights are uninitialized until :func:`training.models.encoder.init_weights` or ``load_state_dict``.
    """

    def __init__(self, config: EncoderDecoderSection, vocab_size: int) -> None:
        super().__init__()
        self.section = config
        self.encoder = Encoder(config, vocab_size, scale_positions=False)
        self.decoder = Decoder(config, vocab_size)
        self.lm_head = OutputHead(config.hidden_size, vocab_size)
        if config.share_embeddings:
            self.decoder.embed_tokens.weight = self.encoder.embed_tokens.weight
        if config.tie_word_embeddings:
            self.lm_head.weight = self.decoder.embed_tokens.weight

    def encode(self, source: torch.Tensor, source_lengths: torch.Tensor | None = None) -> Encoded:
        """Encode token ids [B, S] into keys and values, which the decoder uses for every target token.

        ``source_lengths`` [B] is the number of tokens in each row, excluding padding, or None if there is no padding.
        """
        encoded = self._encode(source, source_lengths)
        return Encoded([layer.cross_attn.project_kv(encoded) for layer in self.decoder.blocks])

    def new_cache(self, sequences: int, capacity: int) -> Cache:
        """Create a cache for ``capacity`` target tokens per sequence, with entries for every decoder layer and head."""
        config = self.section
        heads, width = config.num_attention_heads, 2 * config.head_size
        return Cache(config.depth_of_decoder, sequences, capacity, width, self.lm_head.weight.detach(), heads)

    def hidden(self, input_ids_BT: torch.Tensor, encoded: Encoded, cache: Cache | None = None) -> torch.Tensor:
        """Map target token ids [B, T] to the hidden states [B, T, D] that the head reads.

        With a ``cache``, the ids follow the cached tokens, and the caller must commit the ids to the cache. ``encoded``
        may hold fewer sources than there are rows of ids. Each source is then shared by the same number of consecutive
        rows.
        """
        return self._decode(input_ids_BT, encoded.layers, cache)

    def forward(
        self,
        input_ids_BT: torch.Tensor,
        targets: Sequence[torch.Tensor] | None = None,
        source: torch.Tensor | None = None,
        source_lengths: torch.Tensor | None = None,
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """Map target token ids [B, T] to logits [B, T, V] in the model's dtype or, given ``targets``, to the loss.

        Args:
            input_ids_BT: the decoder's input, i.e. the true target tokens shifted right.
            targets: a single element, the labels [B, T].
            source: token ids [B, S]; required.
            source_lengths: [B], number of tokens in each source, excluding padding. None if there is no padding.

        Returns:
            Logits, or ``{"cross_entropy": sum over the targets in nats}``.

        Raises:
            ValueError: ``source`` is None.
        """
        if source is None:
            raise ValueError("an encoder-decoder needs a source for each sequence")
        # The layers project keys and values themselves, so that activation checkpointing does not have to save them.
        encoded = self._encode(source, source_lengths)
        hidden_BTD = self._decode(input_ids_BT, [encoded] * len(self.decoder.blocks), None)
        if targets is None:
            return self.lm_head(hidden_BTD)
        return {"cross_entropy": self.lm_head(hidden_BTD, targets[0])}

    def _decode(
        self, input_ids_BT: torch.Tensor, sources: Sequence[Source | CrossAttentionKV], cache: Cache | None
    ) -> torch.Tensor:
        length = input_ids_BT.shape[1]
        positions = torch.arange(length, device=input_ids_BT.device) if cache is None else cache.begin(length)
        out: torch.Tensor = self.decoder(input_ids_BT, positions, sources, cache)
        return out

    def _encode(self, source: torch.Tensor, source_lengths: torch.Tensor | None) -> Source:
        encoded_BSD = self.encoder(source, source_lengths)
        by = self.section.cross_downsample
        if by > 1:
            encoded_BSD = pooled(encoded_BSD, by, source_lengths)
            source_lengths = None if source_lengths is None else (source_lengths + by - 1) // by
        return Source(encoded_BSD, Mask(False, lengths_B=source_lengths))


def pooled(x_BSD: torch.Tensor, by: int, lengths_B: torch.Tensor | None = None) -> torch.Tensor:
    """Average over groups of ``by`` positions, ignoring padding: [B, S, D] -> [B, ceil(S / by), D]."""
    samples, length, _ = x_BSD.shape
    lengths_B = torch.full((samples,), length, device=x_BSD.device) if lengths_B is None else lengths_B
    x_BSD = F.pad(x_BSD, (0, 0, 0, -length % by))
    valid_BS1 = (torch.arange(x_BSD.shape[1], device=x_BSD.device) < lengths_B[:, None])[..., None]
    sums = x_BSD.masked_fill(~valid_BS1, 0.0).unflatten(1, (-1, by)).sum(2)
    return sums / valid_BS1.unflatten(1, (-1, by)).sum(2).clamp_min(1).to(sums.dtype)
