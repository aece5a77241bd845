"""Every model family by its name in the recipe: how its model is built and initialized."""

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
    """The recipe's model with ``vocab_size`` rows, in fp32, with undefined weights.

    It is a :class:`training.layers.block.LayerStack` whose forward pass with ``targets`` returns the summed losses by
    name. Language models are a :class:`training.models.causal_lm.CausalLM`.
    """
    return _CLASSES[cast(Any, section).family](section, vocab_size)


def init_weights(model: torch.nn.Module, seed: int, experts: range | None = None) -> None:
    """Initialize every parameter and buffer in place, as the table of the family says.

    Args:
        model: of :func:`build_model`.
        seed: from 0.
        experts: those whose weights are needed, in a mixture of experts; None: all.
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
