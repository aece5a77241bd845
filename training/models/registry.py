"""Every family by its name in the recipe: how its model is built and given first values."""

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
    """The recipe's model with ``vocab_size`` rows, in fp32; its weights are undefined.

    A ``torch.nn.Module`` with ``set_checkpointing`` (what layers keep in training) and ``compile_regions``, whose
    forward with ``targets`` gives the sums of the losses by name; one that learns from text is a ``CausalLM``
    (:mod:`training.inference.generate`) too.
    """
    return _CLASSES[cast(Any, section).family](section, vocab_size)


def init_weights(model: torch.nn.Module, seed: int, experts: range | None = None) -> None:
    """Give every parameter and buffer its first value, in place, as the family's table says.

    Args:
        model: of :func:`build_model`.
        seed: from 0.
        experts: of a mixture of experts those whose weights are needed; None: all.
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
            raise TypeError(f"{type(model).__name__} is no model of a family")
