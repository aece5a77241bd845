"""Finds the largest micro-batch that fits into memory, and suggests what to change if none does."""

from collections.abc import Iterator

from configs.schema import Recipe
from configs.schema.finetune import FinetuneSection
from training.estimate.device import Kind, device_of
from training.estimate.finetuning import finetuning_recipe
from training.estimate.memory import Memory, memory

#: A recipe counts as smaller if its peak is below this fraction of the peak that did not fit.
_SAFE_FRACTION = 0.9


def largest_micro_batch(
    recipe: Recipe,
    available: int,
    device: Kind | None = None,
    mode: str = "",
    stage: FinetuneSection | None = None,
) -> int | None:
    """Return the largest micro-batch per rank that needs at most ``available`` bytes, or None if not even 1 fits.

    Only divisors of a rank's number of samples per global batch are tried. ``mode`` replaces the recipe's activation
    checkpointing mode. ``stage`` is the fine-tuning stage that must fit, or None for pretraining. The result is a value
    for ``train.micro_batch`` in either case: a stage's micro-batch follows from it.
    """
    kind = device or device_of(recipe).kind
    share = recipe.train.global_batch // recipe.ranks
    divisors = {d for d in range(1, int(share**0.5) + 1) if share % d == 0}
    for size in sorted(divisors | {share // d for d in divisors}, reverse=True):
        if _memory(recipe, kind, size, mode, stage).peak <= available:
            return size
    return None


def _memory(recipe: Recipe, device: Kind, size: int, mode: str = "", stage: FinetuneSection | None = None) -> Memory:
    """Estimate the memory of pretraining or of a stage with ``train.micro_batch`` set to ``size``."""
    if stage is None:
        return memory(recipe, device, size, mode)
    return memory(finetuning_recipe(_with(recipe, micro_batch=size), stage), device, mode=mode, stage=stage)


def advice(recipe: Recipe, available: int, device: Kind | None = None, stage: FinetuneSection | None = None) -> str:
    """Suggest, in one line, the smallest change that makes the recipe fit into ``available`` bytes per rank.

    ``stage`` is as for ``largest_micro_batch``.
    """
    kind = device or device_of(recipe).kind
    size = largest_micro_batch(recipe, available, kind, stage=stage)
    if size is not None:
        return f"set train.micro_batch={size}"
    for change, changed in _changes(recipe, kind):
        size = largest_micro_batch(changed, available, kind, stage=stage)
        if size is not None:
            return f"set {change} train.micro_batch={size}"
    smallest = _memory(recipe, kind, 1, stage=stage)
    if smallest.phases["start"] > available:
        return (
            "no setting fits: at the start every rank holds all parameters that it computes with "
            f"({smallest.phases['start'] / 2**30:,.0f} GiB): use more ranks that share experts "
            "(train.expert_parallel), a smaller model, or more memory per rank (launch.device_memory)"
        )
    ranks = "1 rank" if recipe.ranks == 1 else f"{recipe.ranks:,} ranks"
    length = _length_key(recipe, stage)
    return f"nothing fits on {ranks}: use more (launch.nodes), a shorter {length} or a smaller model"


def relief(recipe: Recipe, available: int, device: Kind | None = None, stage: FinetuneSection | None = None) -> str:
    """Suggest, in one line, changes that reduce memory, for a recipe that ran out of memory.

    ``available`` is the known or assumed memory per rank in bytes. Since the recipe may fit according to the estimate,
    the advice also aims for a peak of at most 90% of the recipe's estimated peak. ``stage`` is as for
    ``largest_micro_batch``.
    """
    kind = device or device_of(recipe).kind
    size = recipe.micro_batch
    bound = min(available, int(_SAFE_FRACTION * _memory(recipe, kind, size, stage=stage).peak))
    return (
        f"{advice(recipe, bound, kind, stage)}; a lower train.micro_batch (accumulation follows), "
        f"train.activation_checkpointing=full and a shorter {_length_key(recipe, stage)} all need less"
    )


def _length_key(recipe: Recipe, stage: FinetuneSection | None) -> str:
    return recipe.stage_key(stage, "max_length") if stage else "train.context_length"


def _changes(recipe: Recipe, device: Kind) -> Iterator[tuple[str, Recipe]]:
    """Yield settings that reduce memory, each with the resulting recipe.

    The settings accumulate, in this order: activation checkpointing, expert parallelism, ZeRO stage, offloading.
    """
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
    """Return a copy of the recipe with changes to its ``train`` section."""
    return recipe.model_copy(update={"train_section": recipe.train.model_copy(update=changes)})
