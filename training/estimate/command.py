"""``python -m training estimate``: the size and cost of the recipe's model, before anything is built."""

from configs.command import DONE
from configs.schema import Recipe
from training.estimate.flops import attention_flops_per_token, matrix_flops_per_token
from training.estimate.parameters import parameters


def estimate(recipe: Recipe) -> int:
    """Print parameters by part, total and active, and training FLOPs a token and in all; returns the exit status."""
    print("\n".join(lines(recipe)))
    return DONE


def lines(recipe: Recipe) -> list[str]:
    """The table that :func:`estimate` prints."""
    counts = parameters(recipe.model, recipe.vocab_size)
    rows = [("parameters", "total", "active a token")]
    rows += [(part, f"{count:,}", f"{counts.active_by_part[part]:,}") for part, count in counts.by_part.items()]
    rows.append(("all", f"{counts.total:,}", f"{counts.active:,}"))
    if counts.prediction:
        rows.append(("token prediction", f"{counts.prediction:,}", f"{counts.active_prediction:,}"))
    context, train = recipe.train.context_length, recipe.train
    matrices = matrix_flops_per_token(recipe.model, recipe.vocab_size)
    attention = attention_flops_per_token(recipe.model, context)
    tokens = train.steps * train.global_batch_tokens
    return [
        *(f"{name:<20}{total:>20}{active:>20}" for name, total, active in rows),
        "",
        f"training FLOPs a token at context {context:,}: {matrices + attention:.4g} "
        f"(matrices {matrices:.4g}, causal attention {attention:.4g})",
        f"training FLOPs for {tokens:,} tokens: {(matrices + attention) * tokens:.4g}",
    ]
