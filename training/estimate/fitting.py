"""The largest micro-batch that fits, and what to change if none does."""

from collections.abc import Iterator

from configs.schema import Recipe
from training.estimate.device import Kind, device_of
from training.estimate.memory import memory

#: A recipe counts as smaller if its peak is below this fraction of the one that did not fit.
_SAFE_FRACTION = 0.9


def largest_micro_batch(recipe: Recipe, available: int, device: Kind | None = None, mode: str = "") -> int | None:
    """The most samples per rank at a time whose peak is within ``available`` bytes; None: not even one.

    Only numbers that, times the ranks, divide the global batch. ``mode``: of activation checkpointing, if not the
    recipe's.
    """
    kind = device or device_of(recipe).kind
    share = recipe.train.global_batch // recipe.ranks
    divisors = {d for d in range(1, int(share**0.5) + 1) if share % d == 0}
    for size in sorted(divisors | {share // d for d in divisors}, reverse=True):
        if memory(recipe, kind, size, mode).peak <= available:
            return size
    return None


def advice(recipe: Recipe, available: int, device: Kind | None = None) -> str:
    """One line: the smallest change with which the recipe fits into ``available`` bytes per rank."""
    kind = device or device_of(recipe).kind
    size = largest_micro_batch(recipe, available, kind)
    if size is not None:
        return f"set train.micro_batch={size}"
    for change, changed in _changes(recipe, kind):
        size = largest_micro_batch(changed, available, kind)
        if size is not None:
            return f"set {change} train.micro_batch={size}"
    smallest = memory(recipe, kind, 1)
    if smallest.phases["start"] > available:
        return (
            "no setting fits: at the start every rank holds all parameters that it computes with "
            f"({smallest.phases['start'] / 2**30:,.0f} GiB): use more ranks that share experts "
            "(train.expert_parallel), a smaller model, or more memory per rank (launch.device_memory)"
        )
    return "nothing fits on so few ranks: use more (launch.nodes), a shorter train.context_length or a smaller model"


def relief(recipe: Recipe, available: int, device: Kind | None = None) -> str:
    """One line for a recipe that ran out of memory: only changes that need less than the recipe.

    ``available``: bytes per rank, as far as known; by the estimate they may have been enough.
    """
    kind = device or device_of(recipe).kind
    bound = min(available, int(_SAFE_FRACTION * memory(recipe, kind).peak))
    return (
        f"{advice(recipe, bound, kind)}; a lower train.micro_batch (accumulation follows), "
        "train.activation_checkpointing=full and a shorter train.context_length all need less"
    )


def _changes(recipe: Recipe, device: Kind) -> Iterator[tuple[str, Recipe]]:
    """Recipes that need less memory, with the keys to set; changes add up: checkpointing, experts, stage, offload."""
    train = recipe.train
    modes = ["none", "selective", "full"]
    for mode in modes[modes.index(train.activation_checkpointing) + 1 :]:
        yield f"train.activation_checkpointing={mode}", _with(recipe, activation_checkpointing=mode)
    base, keys = _with(recipe, activation_checkpointing="full"), ["train.activation_checkpointing=full"]
    if train.activation_checkpointing == "full":
        keys = []
    sizes = [n for n in range(2, recipe.ranks + 1) if not recipe.ranks % n and not recipe.model.expert_count % n]
    if recipe.model.has_experts and sizes and max(sizes) > recipe.expert_parallel:
        base, keys = _with(base, expert_parallel=max(sizes)), [*keys, f"train.expert_parallel={max(sizes)}"]
        yield " ".join(keys), base
    stages = [stage for stage in (2, 3) if stage > train.zero_stage and not (stage == 3 and recipe.model.compile)]
    for stage in stages if recipe.ranks > 1 else ():
        yield " ".join([*keys, f"train.zero_stage={stage}"]), _with(base, zero_stage=stage)
    if device == "cuda" and train.offload_optimizer == "none":
        stage = max([train.zero_stage, 2, *stages])
        both = [*keys, f"train.zero_stage={stage}", "train.offload_optimizer=cpu"]
        yield " ".join(both), _with(base, zero_stage=stage, offload_optimizer="cpu")


def _with(recipe: Recipe, **changes: object) -> Recipe:
    """The recipe with changed keys of ``train``."""
    return recipe.model_copy(update={"train_section": recipe.train.model_copy(update=changes)})
