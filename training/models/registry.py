"""Builds and initializes models of any family, by the family's name in the recipe."""

from typing import Any, cast

import torch

from configs.schema.models import ModelSection
from training.models import bigram, classifier, deepseek, encoder, encoder_decoder, gpt

_CLASSES: dict[str, Any] = {
    "deepseek": deepseek.DeepseekForCausalLM,
    "gpt": gpt.GptForCausalLM,
    "bigram": bigram.BigramForCausalLM,
    "encoder": encoder.EncoderForTokens,
    "encoder_decoder": encoder_decoder.EncoderDecoder,
    "classifier": classifier.Classifier,
}


def build_model(section: ModelSection, vocab_size: int) -> Any:
    """Build the recipe's model in fp32 with uninitialized weights; its embedding and head have ``vocab_size`` rows.

    The model is a :class:`training.layers.block.LayerStack` whose forward pass, given ``targets``, returns the summed
    losses by name. Language models are instances of :class:`training.models.causal_lm.CausalLM`.
    """
    return _CLASSES[cast(Any, section).family](section, vocab_size)


def init_weights(model: torch.nn.Module, seed: int, experts: range | None = None) -> None:
    """Initialize every parameter and buffer in place, as documented in the family's own ``init_weights``.

    Args:
        model: a model from :func:`build_model`.
        seed: a non-negative seed.
        experts: the experts whose weights are needed if the model has experts, or None for all of them.
    """
    match model:
        case deepseek.DeepseekForCausalLM():
            deepseek.init_weights(model, seed, experts)
        case gpt.GptForCausalLM():
            gpt.init_weights(model, seed)
        case bigram.BigramForCausalLM():
            bigram.init_weights(model, seed)
        case encoder.EncoderForTokens() | encoder_decoder.EncoderDecoder():
            encoder.init_weights(model, seed)
        case classifier.Classifier():
            classifier.init_weights(model, seed, experts)
        case _:
            raise TypeError(f"{type(model).__name__} is not a model of any family")
