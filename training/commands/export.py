"""``python -m training export``: writes a run's model as a Hugging Face model directory and verifies it."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from artefacts import manifest
from artefacts.stage import open_stage
from configs.command import DONE
from configs.run_layout import RunLayout
from configs.schema import Recipe
from configs.schema.adapter import LoraSection
from tokenizer.registry import load_tokenizer
from training.checkpoint.full_weights import lora_settings, read_adapters, read_weights, require_checkpoint
from training.checkpoint.index import Contents
from training.estimate.parameters import parameters
from training.export.adapter import in_main_model, write_adapter
from training.export.folder import write_config, write_tokenizer, write_weights
from training.export.formats import format_of
from training.export.proof import difference_to_transformers, require_same_weights
from training.export.weights import load_weights, released_stream
from training.layers.adapters.attach import attach_adapters, load_adapters
from training.model_loading import DTYPES, chat_template_of, require_same_model, wanted_checkpoint
from training.models.registry import build_model

#: Bytes per parameter needed for verification: two copies of our model and one of transformers', in fp32.
_VERIFY_BYTES = 12
#: Folder in the model directory for an adapter in peft's format.
ADAPTER = "adapter"


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
    settings = lora_settings(saved)
    # Without adapters, there is nothing to merge.
    lora = None if settings is None or recipe.export.merge else LoraSection(**settings)
    stage_name = saved.details.get("run", {}).get("name", "")
    inputs = {"checkpoint": saved.fingerprint, "tokenizer": tokenizer_manifest.fingerprint}
    identity = {"model": recipe.model.identity(), "precision": recipe.train.precision}
    with open_stage("export", layout.export, identity | ({"adapter": True} if lora else {}), inputs) as stage:
        if stage.finished:
            print(f"{layout.export}: up to date")
            return DONE
        dtype, tokenizer = DTYPES[recipe.train.precision], load_tokenizer(layout.tokenizer)
        names = [*(contents := Contents(checkpoint)).parameters, *contents.buffers()]
        stream = released_stream(recipe.model, _weights(recipe, checkpoint, lora), names)
        numbers = write_weights(stage.work, stream, dtype)
        chats = "chat_template" in saved.details.get("run", {})
        template = chat_template_of(checkpoint, tokenizer) if chats else None
        write_config(stage.work, config, dtype, tokenizer, template)
        write_tokenizer(stage.work, layout.tokenizer, tokenizer, template)
        if lora:
            write_adapter(stage.work / ADAPTER, recipe.model, lora, read_adapters(checkpoint))
        proof = _verify(recipe, stage.work, checkpoint, lora, tokenizer.vocab_size)
        stage.publish(
            {"numbers": numbers},
            manifest.versions("torch", "safetensors", "transformers", *(["peft"] if lora else [])),
            {"checkpoint": checkpoint.name, "stage": stage_name, "step": saved.counts["step"], "proof": proof},
        )
    adapter = f" and the adapter in {layout.export / ADAPTER}" if lora else ""
    print(f"{layout.export}: {numbers:,} weights in {recipe.train.precision}{adapter}; {proof}")
    return DONE


def _weights(recipe: Recipe, checkpoint: Path, lora: LoraSection | None) -> Iterator[tuple[str, torch.Tensor]]:
    """Read the weights to export. With an adapter that is exported itself, only prediction layers are merged."""
    return read_weights(checkpoint, lambda name: lora is None or not in_main_model(recipe.model, name))


def _verify(recipe: Recipe, folder: Path, checkpoint: Path, lora: LoraSection | None, vocabulary: int) -> str:
    """Read the written files back and compare them with the model. Returns the result in words.

    Raises:
        RuntimeError: the files differ from the model.
    """
    needed = _VERIFY_BYTES * parameters(recipe.model, recipe.vocab_size).all
    if needed > psutil.virtual_memory().available:
        return f"not verified, which would need {needed / 1e9:,.0f} GB of memory"
    dtype = DTYPES[recipe.train.precision]
    model, fresh = (build_model(recipe.model, recipe.vocab_size) for _ in range(2))
    load_weights(model, _weights(recipe, checkpoint, lora))
    fresh = fresh.to(dtype).eval()
    require_same_weights(folder, model.to(dtype), fresh)
    del model
    read, library = "read back identically", "transformers"
    difference = difference_to_transformers(folder, fresh, vocabulary)
    if lora and difference is not None:
        attach_adapters(fresh.float(), lora)
        load_adapters(fresh, read_adapters(checkpoint))
        difference, library = difference_to_transformers(folder, fresh, vocabulary, folder / ADAPTER), "peft"
    if difference is None:
        missing = "transformers" if importlib.util.find_spec("transformers") is None else "peft"
        return f"{read}; logits were not compared, since {missing} is not installed"
    return f"{read}; the logits of {library} differ by at most {difference:.1e}"
