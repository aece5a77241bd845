"""``python -m training estimate``: a recipe's model size, FLOPs and memory, computed without building the model."""

from configs.command import DONE
from configs.schema import Recipe
from training.estimate.device import device_of
from training.estimate.finetuning import finetuning_recipe, trained_numbers
from training.estimate.fitting import advice, largest_micro_batch
from training.estimate.flops import attention_flops_per_token, flops_per_token, matrix_flops_per_token
from training.estimate.memory import memory
from training.estimate.parameters import parameters


def estimate(recipe: Recipe) -> int:
    """Print parameter counts, training FLOPs, and memory per rank by component and phase. Returns the exit status."""
    print("\n".join([*lines(recipe), "", *memory_lines(recipe), *finetuning_lines(recipe)]))
    return DONE


def lines(recipe: Recipe) -> list[str]:
    """Return the lines about parameters and FLOPs that :func:`estimate` prints."""
    counts = parameters(recipe.model, recipe.vocab_size)
    rows = [("parameters", "total", "active per token")]
    rows += [(part, f"{count:,}", f"{counts.active_by_part[part]:,}") for part, count in counts.by_part.items()]
    rows.append(("all", f"{counts.total:,}", f"{counts.active:,}"))
    if counts.prediction:
        rows.append(("token prediction", f"{counts.prediction:,}", f"{counts.active_prediction:,}"))
    context, train = recipe.train.context_length, recipe.train
    predicts = train.mtp_loss > 0
    matrices = matrix_flops_per_token(recipe.model, recipe.vocab_size, predicts)
    attention = attention_flops_per_token(recipe.model, context, predicts)
    tokens = train.steps * train.global_batch_tokens
    return [
        *(f"{name:<20}{total:>20}{active:>20}" for name, total, active in rows),
        "",
        f"training FLOPs per token at context {context:,}: {matrices + attention:.4g} "
        f"(matrices {matrices:.4g}, attention {attention:.4g})",
        f"training FLOPs for {tokens:,} tokens: {(matrices + attention) * tokens:.4g}",
    ]


def memory_lines(recipe: Recipe) -> list[str]:
    """Return the lines about memory per rank: components, activations by mode, phases, and the largest micro-batch."""
    train, device = recipe.train, device_of(recipe)
    estimated = memory(recipe, device.kind)
    where = {"cuda": "GPU", "mps": "MPS", "cpu": "CPU"}[device.kind]
    of_ranks = "the one rank" if recipe.ranks == 1 else f"each of {recipe.ranks:,} ranks"
    title = (
        f"memory of {of_ranks} on {where}: ZeRO {train.zero_stage}, expert parallel "
        f"{recipe.expert_parallel}, {train.precision}, micro-batch {recipe.micro_batch} x {train.context_length:,}, "
        f"checkpointing {train.activation_checkpointing}; assuming balanced routing"
    )
    rows = [title, *(f"  {part:<45}{_gib(size)}" for part, size in estimated.parts.items() if size)]
    rows += [
        f"  {'saved for backward, checkpointing ' + mode:<45}{_gib(size)}" for mode, size in estimated.modes.items()
    ]
    rows += [f"  {'peak ' + _when(phase):<45}{_gib(size)}" for phase, size in estimated.phases.items()]
    rows.append(
        f"peak {_gib(estimated.peak).strip()}, {_when(estimated.phase)}; "
        f"available: {_gib(device.bytes).strip()} ({device.source})"
    )
    if estimated.host:
        rows.append(
            "peak host memory, while the model is built, or for offloaded state and the copy for a checkpoint: "
            f"{_gib(estimated.host).strip()} per rank, "
            f"{_gib(estimated.host * recipe.launch.processes).strip()} per node"
        )
    size = largest_micro_batch(recipe, device.bytes, device.kind)
    if size is None:
        rows.append(f"not even micro-batch 1 fits: {advice(recipe, device.bytes, device.kind)}")
    else:
        by_mode = {mode: largest_micro_batch(recipe, device.bytes, device.kind, mode) for mode in estimated.modes}
        rows.append(
            f"largest micro-batch that fits: {size} (train.activation_checkpointing "
            + ", ".join(f"{mode}: {most or 'not even 1'}" for mode, most in by_mode.items())
            + f"; a rank's share of train.global_batch_tokens is {train.global_batch // recipe.ranks} samples)"
        )
    return rows


def finetuning_lines(recipe: Recipe) -> list[str]:
    """Return a line about each fine-tuning stage: the parameters that it trains, its FLOPs, and a rank's memory."""
    rows, kind = [], device_of(recipe).kind
    for stage in recipe.finetune:
        numbers, counts = trained_numbers(recipe, stage), parameters(recipe.model, recipe.vocab_size)
        tuned = finetuning_recipe(recipe, stage)
        estimated, predicts = memory(tuned, kind, stage=stage), tuned.train.mtp_loss > 0
        flops = flops_per_token(recipe.model, recipe.vocab_size, stage.max_length, predicts, stage)
        state, grads = (_size(estimated.parts[part]) for part in ("optimizer state", "gradients"))
        shape = f"{recipe.micro_batch_of(stage)} {'x 2 ' if stage.rows == 2 else ''}x {stage.max_length:,}"
        rows.append(
            f"fine-tuning {stage.name}: micro-batch {shape}, trains {numbers.total:,} parameters, "
            f"{numbers.total / counts.all:.2%} of the model's number, in {flops:.4g} FLOPs per token; "
            f"per rank, optimizer state {state}, gradients {grads}, peak {_size(estimated.peak)}"
        )
    return ["", *rows] if rows else []


def _gib(size: float) -> str:
    return f"{size / 2**30:12,.2f} GiB"


def _size(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def _when(phase: str) -> str:
    return f"{'at' if phase == 'start' else 'during'} {phase}"
