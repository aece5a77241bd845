"""``python -m training finetune``: trains one fine-tuning stage on chat examples or on pairs of answers.

Only the assistant's messages contribute to the loss.
"""

from dataclasses import replace
from typing import Any

from artefacts import manifest
from artefacts.signals import StopRequest
from configs import command
from configs.checks.run_weights import target
from configs.run_layout import RunLayout
from configs.schema import Recipe
from configs.schema.finetune import FinetuneSection
from configs.schema.train import ScheduleSection, TrainSection
from tokenizer.chat_template import ChatTemplate
from tokenizer.registry import load_tokenizer
from training.checkpoint.full_weights import read_weights, require_checkpoint
from training.data.batch import Batch, Data
from training.data.build import replayed, validation_windows
from training.data.chat import ChatExamples
from training.data.examples import ExampleData
from training.data.packed_examples import PackedExampleData, packed_in_order
from training.data.preferences import PreferenceExamples
from training.data.replay import Replay, samples_per_step
from training.export.weights import load_weights
from training.inference.prompt_sampler import prompt_sampler
from training.job import Job, run_job
from training.model_loading import chat_template_of, trained_part
from training.models.registry import build_model
from training.preference.objective import PreferenceObjective
from training.preference.reference import Reference, reference_inputs
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
    folder, tokenizer = layout.examples_of(run.name), load_tokenizer(layout.tokenizer)
    kind: Any = PreferenceExamples if section.preference else ChatExamples
    examples, held_out = (kind(folder, split, tokenizer.pad_id) for split in ("train", "held-out"))
    source = manifest.require(folder, "examples").details["template"]["source"]
    template = ChatTemplate(source, tokenizer, f"the chat template of {folder}")
    trained = trained_part(recipe, section)
    notices = [trained.check(lambda: build_model(recipe.model, recipe.vocab_size))]
    train = _train_section(recipe, section, len(examples))
    data, micro_batch = _data(recipe, layout, section, examples, train.steps)
    start = finished_checkpoint(layout.training(recipe.start_of(section)))
    assert start is not None, "finetune_run refuses to start from a stage that is not finished"
    weights = start[0]
    if recipe.start_of(section) != "pretrain" and chat_template_of(weights, tokenizer).source != source:
        notices.append(f"the chat template differs from the one that {weights} was trained with")
    windows = validation_windows(recipe, layout)
    # As many tokens as the held-out examples have, so that measuring both costs about the same.
    count = max(_LEAST_WINDOWS, -(-held_out.tokens // windows.context_length))

    def check_inputs() -> None:
        require_checkpoint(weights, target(recipe.start_of(section)))
        trained.check_adapter(lambda: build_model(recipe.model, recipe.vocab_size))

    job = Job(
        run=run,
        train=train,
        global_batch=section.batch_examples,
        micro_batch=micro_batch,
        data=data,
        validation=lambda: _validation(section, held_out, micro_batch),
        earlier_validation=windows.spread(count, recipe.micro_batch),
        check_inputs=check_inputs,
        init_weights=lambda model, experts: load_weights(model, read_weights(weights), experts),
        chat_template=source,
        keep_best=section.keep_best,
        sampler=prompt_sampler(recipe, tokenizer, template),
        trained=trained,
        notice="; ".join(filter(None, notices)),
    )
    if section.preference:
        objective = PreferenceObjective(recipe.model, train, section.preference)
        splits = {"train": examples, "held-out": held_out}
        reference = Reference(run.folder, reference_inputs(run), splits, objective, micro_batch)
        job = replace(job, objective=objective, preparation=reference)
    return run_job(recipe, job, stop)


def _data(recipe: Recipe, layout: RunLayout, section: FinetuneSection, examples: Any, steps: int) -> tuple[Data, int]:
    """Return the micro-batches of every step, and the number of examples in a micro-batch."""
    if not section.packs:
        data = ExampleData(examples, section.batch_examples, recipe.run.seed)
        return data, recipe.micro_batch_of(section)
    replay = _replay(recipe, layout, section, examples)
    packed = PackedExampleData(examples, section.batch_examples, section.max_length, recipe.run.seed, replay)
    return packed, recipe.micro_batch_of(section, packed.tokens_per_example(steps))


def _replay(recipe: Recipe, layout: RunLayout, section: FinetuneSection, examples: ChatExamples) -> Replay | None:
    """Return the pretraining text to mix in, or None without ``replay``."""
    if not section.replayed:
        return None
    length = min(section.max_length, recipe.train.context_length)
    per_step = section.batch_examples * examples.tokens / len(examples)
    return replayed(recipe, layout, samples_per_step(section.replayed, per_step, length), length)


def _validation(section: FinetuneSection, held_out: Any, batch: int) -> list[Batch]:
    """Return batches that contain every held-out example once."""
    if section.packs:
        return packed_in_order(held_out, batch, section.max_length)
    batches: list[Batch] = held_out.in_order(batch)
    return batches


def _train_section(recipe: Recipe, section: FinetuneSection, examples: int) -> TrainSection:
    """Return the recipe's train section, modified for fine-tuning."""
    steps = section.steps(examples)
    schedule = ScheduleSection(
        kind="cosine",
        warmup_steps=min(steps - 1, round(steps * section.warmup_fraction)),
        final_fraction=section.final_fraction,
    )
    changes: dict[str, Any] = {
        "steps": steps,
        "learning_rate": section.learning_rate,
        "schedule": schedule,
        "context_length": section.max_length,
        "mask_documents": section.packs,  # without packing, every sample is a single example
        "router_bias_update_rate": 0.0,
        "eval_every": section.validation_interval(steps),
        "early_stopping": section.early_stopping,
        "simulate_crash_at": None,
    }
    if section.preference:
        changes["mtp_loss"] = 0.0  # a pair's loss has no such part
    return recipe.train.model_copy(update=changes)
