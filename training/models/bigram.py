"""The bigram model, the smallest baseline. It is a table whose row for each token holds the next token's logits."""

import torch
from torch import nn

from configs.schema.models.bigram import BigramSection
from training.layers.cross_entropy import cross_entropy_sum, token_cross_entropy
from training.layers.init import draw_normal
from training.layers.kv_cache import Cache
from training.models.causal_lm import CausalLM


class LogitsHead(nn.Module):
    """Head for hidden states that are already logits, [..., V]. Given labels [...], it returns the loss."""

    def forward(
        self, hidden: torch.Tensor, labels: torch.Tensor | None = None, per_token: bool = False
    ) -> torch.Tensor:
        """Return the logits or, given labels, their summed cross-entropy, or with ``per_token`` each label's."""
        if labels is None:
            return hidden
        return token_cross_entropy(hidden, labels) if per_token else cross_entropy_sum(hidden, labels)


class BigramModel(nn.Module):
    """The table [V, V], which maps token ids [B, T] to logits [B, T, V]."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, vocab_size)

    def forward(self, input_ids_BT: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.embed_tokens(input_ids_BT)
        return out


class BigramForCausalLM(CausalLM):
    """A language model that sees only the previous token. Weights are uninitialized until :func:`init_weights`."""

    section: BigramSection

    def __init__(self, config: BigramSection, vocab_size: int) -> None:
        super().__init__(config, BigramModel(vocab_size), LogitsHead())

    def new_cache(self, sequences: int, capacity: int, layers: int | None = None) -> Cache:
        """Create a cache without layers, which only counts the tokens read."""
        return Cache(layers or 0, sequences, capacity, 0, self.model.embed_tokens.weight.detach())

    def hidden(
        self, input_ids_BT: torch.Tensor, starts: torch.Tensor | None = None, cache: Cache | None = None
    ) -> torch.Tensor:
        """Map token ids [B, T] to logits [B, T, V], which do not depend on ``starts``."""
        if cache is not None:
            cache.begin(input_ids_BT.shape[1])
        out: torch.Tensor = self.model(input_ids_BT)
        return out


@torch.no_grad()
def init_weights(model: BigramForCausalLM, seed: int) -> None:
    """Draw the table from N(0, initializer_range), in place."""
    for name, parameter in model.named_parameters():
        draw_normal(parameter, f"{seed}/{name}", model.section.initializer_range)
