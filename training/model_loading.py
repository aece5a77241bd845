"""A trained model on one device, out of a run's checkpoints."""

import sys
from pathlib import Path
from typing import Any

import torch

from artefacts import manifest
from artefacts.errors import RequestError
from artefacts.training_folder import has_weights
from configs.checks import run_weights
from configs.run_layout import RunLayout
from configs.schema import Recipe
from training.checkpoint.full_weights import read_weights, require_checkpoint
from training.checkpoint.load import newest_whole
from training.distributed.device import choose
from training.export.weights import load_backbone, load_weights
from training.layers import cpu
from training.models.registry import build_model, init_weights
from training.runs import backbone_checkpoint, given_checkpoint


def best_device(recipe: Recipe) -> torch.device:
    """``launch.device``, or the best that is here.

    Raises:
        RequestError: it is not here.
    """
    return choose(recipe.launch.device)


def load_model(recipe: Recipe, checkpoint: Path, device: torch.device) -> Any:
    """The recipe's model with a checkpoint's weights, in the precision it was trained in, in evaluation mode.

    Raises:
        RequestError: there is no such checkpoint, or it is damaged or of another model than the recipe's.
    """
    require_same_model(recipe, checkpoint, require_checkpoint(checkpoint, "pretrain").details["model"])
    model = build_model(recipe.model, recipe.vocab_size)
    load_weights(model, read_weights(checkpoint))
    model = model.to({"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[recipe.train.precision])
    if device.type == "cpu":
        cpu.kernels.compile_kernels()
    return model.to(device).eval()


def require_same_model(recipe: Recipe, checkpoint: Path, trained: dict[str, Any]) -> None:
    """Refuse weights that were trained as another model: a gate of another kind fits them as well, and means nothing.

    A longer context is another matter: that is tried on purpose.
    """
    asked = {**recipe.model.identity(), "vocab_size": recipe.vocab_size}
    # Another family differs in most keys: it is told as that.
    for key, value in sorted(trained.items(), key=lambda item: item[0] != "family"):
        if key in asked and asked[key] != value and key != "max_position_embeddings":
            raise RequestError(
                f"{checkpoint} was trained with model.{key}={value}, the recipe says {asked[key]}: give the recipe and "
                "the overrides that it was trained with"
            )


def wanted_checkpoint(recipe: Recipe, layout: RunLayout) -> Path:
    """``generate.weights``, or else the newest checkpoint of ``generate.stage``; a line on stderr says what it is.

    Raises:
        RequestError: there is none; it was trained with another tokenizer or as another model; or the stage is not
            given, and the fine-tuned weights were not trained from what is there now.
    """
    section = recipe.generate
    if section.weights:
        checkpoint = given_checkpoint(section.weights, "generate.weights")
        saved, why = manifest.require(checkpoint, "pretrain"), ""
    else:
        stage = section.stage or ("finetune" if has_weights(layout.finetune) else "pretrain")
        if stage == "finetune" and section.stage is None:
            run_weights.check_finetuning(layout)
        newest = newest_whole(getattr(layout, stage) / "checkpoints")
        if newest is None:
            raise run_weights.none_yet(layout, stage)
        for passed_over in newest.passed_over:
            print(f"warning: {passed_over}", file=sys.stderr)
        checkpoint, saved, why = newest.folder, newest.manifest, run_weights.stale(layout, stage)
    run_weights.check_tokenizer(checkpoint, saved, layout)
    require_same_model(recipe, checkpoint, saved.details["model"])
    print(run_weights.line(checkpoint, saved, why), file=sys.stderr, flush=True)
    if section.chat and run_weights.is_only_pretrained(saved):
        print("note: these weights were never fine-tuned, and know no turns: set generate.chat=false", file=sys.stderr)
    return checkpoint


def first_weights(recipe: Recipe, model: torch.nn.Module, experts: range | None = None) -> None:
    """Set every parameter and buffer in place; ``experts``: those that are needed, None: all.

    Raises:
        RequestError: ``model.weights`` names no checkpoint, or one of another model.
    """
    init_weights(model, recipe.run.seed, experts)
    if (checkpoint := backbone_checkpoint(recipe)) is not None:
        require_checkpoint(checkpoint, "pretrain")
        load_backbone(model, read_weights(checkpoint), experts)
