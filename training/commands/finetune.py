"""``python -m training finetune``: trains one fine-tuning stage on chat examples.

Only the assistant's messages contribute to the loss.
"""

import math

from artefacts.signals import StopRequest
from configs import command
from configs.checks.run_weights import target
from configs.run_layout import RunLayout
from configs.schema import Recipe
from configs.schema.finetune import FinetuneSection
from configs.schema.train import ScheduleSection, TrainSection
from tokenizer.registry import load_tokenizer
from training.checkpoint.full_weights import read_weights, require_checkpoint
from training.data.build import validation_windows
from training.data.chat import ChatExamples
from training.data.examples import ExampleData
from training.export.weights import load_weights
from training.job import Job, run_job
from training.runs import finetune_run, finished_checkpoint, next_run

#: Minimum number of windows of pretraining's validation text that measure what fine-tuning forgets.
_LEAST_WINDOWS = 16


def finetune(recipe: Recipe, stop: StopRequest, stage: str | None = None) -> int:
    """Start or resume a fine-tuning stage, or report that it is finished. Returns the exit status.

    Args:
        recipe: the run's recipe.
        stop: set when a signal asks the run to stop.
        stage: the stage's name. By default, the first stage that is not finished.
    """
    layout = RunLayout.of(recipe)
    run = finetune_run(recipe, layout, stage) if stage else next_run(recipe, layout, "finetune")
    section = recipe.stage(run.name)
    if run.manifest() is not None:
        print(f"{run.folder}: up to date")
        return command.DONE
    pad = load_tokenizer(layout.tokenizer).pad_id
    examples = ChatExamples(layout.examples_of(run.name), "train", pad)
    held_out = ChatExamples(layout.examples_of(run.name), "held-out", pad)
    train = _train_section(recipe, section, len(examples))
    micro_batch = _micro_batch(recipe, section)
    start = finished_checkpoint(layout.training(recipe.start_of(section)))
    assert start is not None, "finetune_run refuses to start from a stage that is not finished"
    weights = start[0]
    windows = validation_windows(recipe, layout, mark_samples=train.mask_documents)
    # As many tokens as the held-out examples have, so that measuring both costs about the same.
    count = max(_LEAST_WINDOWS, -(-held_out.tokens // windows.context_length))
    job = Job(
        run=run,
        train=train,
        global_batch=section.batch_examples,
        micro_batch=micro_batch,
        data=ExampleData(examples, section.batch_examples, recipe.run.seed),
        validation=held_out.in_order(micro_batch),
        earlier_validation=windows.spread(count, recipe.micro_batch),
        check_inputs=lambda: require_checkpoint(weights, target(recipe.start_of(section))),
        init_weights=lambda model, experts: load_weights(model, read_weights(weights), experts),
    )
    return run_job(recipe, job, stop)


def _micro_batch(recipe: Recipe, section: FinetuneSection) -> int:
    """Return the largest micro-batch that divides a rank's batch and has no more tokens than in pretraining."""
    share = section.batch_examples // recipe.ranks
    tokens = recipe.micro_batch * recipe.train.context_length
    fitting = [size for size in range(1, share + 1) if share % size == 0 and size * section.max_length <= tokens]
    return max(fitting, default=1)


def _train_section(recipe: Recipe, section: FinetuneSection, examples: int) -> TrainSection:
    """Return the recipe's train section, modified for fine-tuning."""
    steps = max(1, math.ceil(section.epochs * examples / section.batch_examples))
    schedule = ScheduleSection(
        kind="cosine",
        warmup_steps=min(steps - 1, round(steps * section.warmup_fraction)),
        final_fraction=section.final_fraction,
    )
    changes = {
        "steps": steps,
        "learning_rate": section.learning_rate,
        "schedule": schedule,
        "context_length": section.max_length,
        "mask_documents": False,  # every sample is a single example
        "router_bias_update_rate": 0.0,
        "eval_every": min(recipe.train.eval_every, steps),
        "simulate_crash_at": None,
    }
    return recipe.train.model_copy(update=changes)
