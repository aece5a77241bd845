"""Loads models from a run's checkpoints onto a single device, and initializes new models."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from artefacts import manifest
from artefacts.errors import RequestError
from configs.checks import run_weights
from configs.run_layout import RunLayout
from configs.schema import Recipe
from configs.schema.finetune import FinetuneSection
from tokenizer import chat_template
from tokenizer.base import Tokenizer
from tokenizer.chat_template import ChatTemplate
from training.checkpoint.full_weights import read_weights, require_checkpoint
from training.checkpoint.load import usable_checkpoint
from training.distributed.device import choose_device
from training.export.adapter import adapter_loader
from training.export.weights import load_backbone, load_weights
from training.layers import cpu
from training.models.registry import build_model, init_weights
from training.optim.trained_part import TrainedPart
from training.runs import backbone_checkpoint, named_checkpoint

#: ``train.precision`` -> dtype of the weights.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def best_device(recipe: Recipe) -> torch.device:
    """Return ``launch.device`` or, if that is ``auto``, the best device on this machine.

    Raises:
        RequestError: this machine does not have the requested device.
    """
    return choose_device(recipe.launch.device)


def load_model(recipe: Recipe, checkpoint: Path, device: torch.device, starts: FinetuneSection | None = None) -> Any:
    """Load the recipe's model with a checkpoint's weights, in the training precision and in evaluation mode.

    With ``starts``, the result is the model with which that fine-tuning stage starts from the checkpoint: with its
    initial adapters and reset tables.

    Raises:
        RequestError: the checkpoint does not exist, is damaged, or belongs to a different model than the recipe's; or
            the adapter to start from cannot be read.
    """
    require_same_model(recipe, checkpoint, require_checkpoint(checkpoint, "pretrain").details["model"])
    model = build_model(recipe.model, recipe.vocab_size)
    load_weights(model, read_weights(checkpoint))
    if starts:
        trained_part(recipe, starts).prepare(model, recipe.run.seed, new=True)
    model = model.to(DTYPES[recipe.train.precision])
    if device.type == "cpu":
        cpu.compile_kernels()
    return model.to(device).eval()


def trained_part(recipe: Recipe, stage: FinetuneSection) -> TrainedPart:
    """Return the part of the model that a fine-tuning stage trains, with the loader of the adapter to start from."""
    part = TrainedPart.of(stage, recipe.stage_key(stage))
    return replace(part, load=adapter_loader(recipe.model, stage.lora, recipe.stage_key(stage, "lora")))


def require_same_model(recipe: Recipe, checkpoint: Path, trained: dict[str, Any]) -> None:
    """Reject weights that were trained as a different model, even if the shapes match (e.g. if only the gate differs).

    The context length may differ: running a model on longer texts is a deliberate choice.

    Raises:
        RequestError: the models differ; the message names the key.
    """
    wanted = {**recipe.model.identity(), "vocab_size": recipe.vocab_size}
    # Models of different families differ in most keys, so compare the family first.
    for key, value in sorted(trained.items(), key=lambda item: item[0] != "family"):
        if key in wanted and wanted[key] != value and key != "max_position_embeddings":
            raise RequestError(
                f"{checkpoint} was trained with model.{key}={value}, but the recipe has {wanted[key]}: use the recipe "
                "and the overrides that it was trained with"
            )


def wanted_checkpoint(recipe: Recipe, layout: RunLayout) -> Path:
    """Return ``generate.weights``, or the usable checkpoint of ``generate.stage``, and print the choice to stderr.

    Raises:
        RequestError: there is no checkpoint, the checkpoint has a different tokenizer or model, or the stage is not set
            and the fine-tuned weights do not derive from the current pretrained weights.
    """
    section = recipe.generate
    if section.weights:
        checkpoint = named_checkpoint(section.weights, "generate.weights")
        saved, why = manifest.require(checkpoint, "pretrain"), ""
    else:
        stage = run_weights.wanted_stage(recipe, layout)
        if stage != "pretrain" and section.stage is None:
            run_weights.check_finetuning(layout, stage)
        newest = usable_checkpoint(layout.training(stage))
        if newest is None:
            raise run_weights.none_yet(layout, stage)
        for line in newest.skipped:
            print(f"warning: {line}", file=sys.stderr)
        checkpoint, saved, why = newest.folder, newest.manifest, run_weights.stale(layout, stage)
    run_weights.check_tokenizer(checkpoint, saved, layout)
    require_same_model(recipe, checkpoint, saved.details["model"])
    print(run_weights.line(checkpoint, saved, why), file=sys.stderr, flush=True)
    if section.chat and run_weights.is_only_pretrained(saved):
        print("note: these weights were not fine-tuned for chat: set generate.chat=false", file=sys.stderr)
    return checkpoint


def chat_template_of(checkpoint: Path, tokenizer: Tokenizer) -> ChatTemplate:
    """Return the chat template that a checkpoint's weights were fine-tuned with, or the default template.

    Raises:
        RequestError: the checkpoint cannot be read.
    """
    run = manifest.require(checkpoint, "pretrain").details.get("run", {})
    if source := run.get("chat_template"):
        return ChatTemplate(source, tokenizer, f"the chat template of {checkpoint}")
    return chat_template.default(tokenizer)


def first_weights(recipe: Recipe, model: torch.nn.Module, experts: range | None = None) -> None:
    """Initialize all parameters and buffers in place. A classifier's backbone is loaded from ``model.weights`` if set.

    ``experts`` is the range of experts whose weights are needed, or None for all experts.

    Raises:
        RequestError: ``model.weights`` is not a checkpoint, or belongs to a different model.
    """
    init_weights(model, recipe.run.seed, experts)
    if (checkpoint := backbone_checkpoint(recipe)) is not None:
        require_checkpoint(checkpoint, "pretrain")
        load_backbone(model, read_weights(checkpoint), experts)
