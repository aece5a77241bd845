"""Model FLOPs of a training step per token: what the mathematics asks for, not what an implementation spends."""

from configs.schema.model import ModelSection
from training.estimate.parameters import parameters, prediction_matrices


def flops_per_token(model: ModelSection, vocab_size: int, context: int) -> float:
    """Forward and backward FLOPs of a token, averaged over the positions of a sequence of ``context`` tokens.

    A multiplication and an addition are two. Norms, rotations, softmax and what activation checkpointing computes
    again are left out.
    """
    return matrix_flops_per_token(model, vocab_size) + attention_flops_per_token(model, context)


def matrix_flops_per_token(model: ModelSection, vocab_size: int) -> float:
    """6 for every active parameter that is in a matrix: 2 forward, and 2 for each of the two gradients.

    Each depth of multi-token prediction has its own matrices and goes through the head once more.
    """
    counts = parameters(model, vocab_size)
    main = counts.active - counts.by_part["norms"] - counts.by_part["biases"]
    prediction = model.num_nextn_predict_layers * (prediction_matrices(model) + vocab_size * model.hidden_size)
    return 6.0 * (main + prediction)


def attention_flops_per_token(model: ModelSection, context: int) -> float:
    """Scores and weighted values against the (context + 1) / 2 positions that causal attention sees on average.

    Many published figures count all of ``context`` and are about twice as large.
    """
    widths = model.qk_nope_head_dim + model.qk_rope_head_dim + model.v_head_dim
    per_position = 2.0 * model.num_attention_heads * widths
    layers = model.num_hidden_layers + model.num_nextn_predict_layers
    return 3.0 * layers * per_position * (context + 1) / 2
