"""``python -m training export``: writes a run's model as a Hugging Face model directory and verifies it."""

from pathlib import Path

import psutil
import torch

from artefacts import manifest
from artefacts.stage import open_stage
from configs.command import DONE
from configs.run_layout import RunLayout
from configs.schema import Recipe
from tokenizer.registry import load_tokenizer
from training.checkpoint.full_weights import read_weights, require_checkpoint
from training.checkpoint.index import Contents
from training.estimate.parameters import parameters
from training.export.folder import write_config, write_tokenizer, write_weights
from training.export.formats import format_of
from training.export.proof import difference_to_transformers, require_same_weights
from training.export.weights import load_weights, released_stream
from training.model_loading import DTYPES, require_same_model, wanted_checkpoint
from training.models.registry import build_model

#: Bytes per parameter needed for verification: two copies of our model and one of transformers', in fp32.
_VERIFY_BYTES = 12


def export(recipe: Recipe) -> int:
    """Write ``export/`` atomically and verify it. Returns the exit status.

    Raises:
        RequestError: the family has no released format, or the format cannot represent this model; there is no
            checkpoint, or it contains a different model.
        RuntimeError: the written files differ from the model.
    """
    layout = RunLayout.of(recipe)
    config = format_of(recipe.model).released_config(recipe.model, recipe.vocab_size)
    checkpoint = wanted_checkpoint(recipe, layout)
    saved = require_checkpoint(checkpoint, "pretrain")
    require_same_model(recipe, checkpoint, saved.details["model"])
    tokenizer_manifest = manifest.require(layout.tokenizer, "tokenizer")
    stage_name = saved.details.get("run", {}).get("name", "")
    inputs = {"checkpoint": saved.fingerprint, "tokenizer": tokenizer_manifest.fingerprint}
    identity = {"model": recipe.model.identity(), "precision": recipe.train.precision}
    with open_stage("export", layout.export, identity, inputs) as stage:
        if stage.finished:
            print(f"{layout.export}: up to date")
            return DONE
        dtype, tokenizer = DTYPES[recipe.train.precision], load_tokenizer(layout.tokenizer)
        names = [*(contents := Contents(checkpoint)).parameters, *contents.buffers()]
        stream = released_stream(recipe.model, read_weights(checkpoint), names)
        numbers = write_weights(stage.work, stream, dtype)
        write_config(stage.work, config, dtype, tokenizer)
        write_tokenizer(stage.work, layout.tokenizer, tokenizer)
        proof = _verify(recipe, stage.work, checkpoint, dtype, tokenizer.vocab_size)
        stage.publish(
            {"numbers": numbers},
            manifest.versions("torch", "safetensors", "transformers"),
            {"checkpoint": checkpoint.name, "stage": stage_name, "step": saved.counts["step"], "proof": proof},
        )
    print(f"{layout.export}: {numbers:,} weights in {recipe.train.precision}; {proof}")
    return DONE


def _verify(recipe: Recipe, folder: Path, checkpoint: Path, dtype: torch.dtype, vocabulary: int) -> str:
    """Read the written files back and compare them with the model. Returns the result in words.

    Raises:
        RuntimeError: the files differ from the model.
    """
    needed = _VERIFY_BYTES * parameters(recipe.model, recipe.vocab_size).all
    if needed > psutil.virtual_memory().available:
        return f"not verified, which would need {needed / 1e9:,.0f} GB of memory"
    model, fresh = (build_model(recipe.model, recipe.vocab_size) for _ in range(2))
    load_weights(model, read_weights(checkpoint))
    fresh = fresh.to(dtype).eval()
    require_same_weights(folder, model.to(dtype), fresh)
    del model
    difference = difference_to_transformers(folder, fresh, vocabulary)
    read = "read back identically"
    if difference is None:
        return f"{read}; logits were not compared, since transformers is not installed"
    return f"{read}; the logits of transformers differ by at most {difference:.1e}"
