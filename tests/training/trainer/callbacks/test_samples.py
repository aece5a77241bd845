"""Samples through training: the right text at every topology, and losses that do not change."""

from pathlib import Path
from typing import Any

import pytest
import torch

from artefacts import manifest
from artefacts.errors import RequestError
from artefacts.metrics_log import SAMPLES, read_records
from configs.load import load_recipe
from tests.support.training.engine_job import RECIPE
from tests.support.training.grid import Cell, Task, run_tasks
from tests.support.training.tiny_run import GPT, character_tokenizer, tiny_model, tiny_recipe
from tokenizer import chat_template
from tokenizer.registry import load_tokenizer
from training.checkpoint.full_weights import read_weights
from training.distributed.ranks import Ranks
from training.export.weights import load_weights
from training.inference.completion import complete
from training.inference.generate import Limits, generate_batch
from training.inference.prompt_sampler import prompt_sampler
from training.inference.sampling import Sampling
from training.models.registry import build_model

PROMPTS = ("The dog", "A quick brown fox jumps over")
SAMPLED = (f"train.samples={{prompts: {list(PROMPTS)}, max_new_tokens: 12}}", "train.save_every=3")


def cached_completions(task: Task, step: int) -> list[str]:
    """The completions of a checkpoint's weights by the decoder with a cache, on a single device."""
    recipe, tokenizer = load_recipe(RECIPE), load_tokenizer(task.out / "tokenizer")
    model = build_model(recipe.model, recipe.vocab_size)
    load_weights(model, read_weights(task.out / "checkpoints" / f"step-{step:08d}"))
    reserved = [i for i in range(tokenizer.vocab_size) if tokenizer.is_reserved(i)]
    limits = Limits(12, 512, tokenizer.vocab_size, tokenizer.stop_ids, reserved)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    return [tokenizer.decode(ids) for ids in generate_batch(model.eval(), prompts, limits, Sampling(0), seed=0)]


@pytest.mark.engine
@pytest.mark.parametrize(
    "cells",
    [
        pytest.param([Cell(2, 2, 3)], id="one"),
        pytest.param(
            [Cell(2, size, stage) for stage in (0, 1, 2, 3) for size in (1, 2)] + [Cell(4, 2, 3)],
            marks=pytest.mark.slow,
            id="all",
        ),
    ],
)
def test_samples_are_right_and_change_nothing(tmp_path: Path, cells: list[Cell]) -> None:
    """At every ZeRO stage and expert-parallel size, the weights, the state and the losses stay the same bit for bit."""
    pairs = [
        (Task(cell, tmp_path / f"{number} with", SAMPLED), Task(cell, tmp_path / f"{number} without", SAMPLED[1:]))
        for number, cell in enumerate(cells)
    ]
    run_tasks([task for pair in pairs for task in pair], tmp_path)
    for sampled, plain in pairs:
        assert sampled.seen() == plain.seen(), sampled.cell
        names = [task.out / "checkpoints" / "step-00000008" for task in (sampled, plain)]
        first, second = (manifest.require(name, "pretrain") for name in names)
        assert first.files == second.files and first.details["state"] == second.details["state"], sampled.cell
        records = list(read_records(sampled.out / SAMPLES))
        assert [(record["step"], record["prompt"]) for record in records] == [
            (s, p) for s in (3, 6, 8) for p in PROMPTS
        ]
        assert not (plain.out / SAMPLES).exists()
        completions = [record["completion"] for record in records if record["step"] == 8]
        assert completions == cached_completions(sampled, 8), sampled.cell
        assert all(completions) and completions[0] != completions[1]


@pytest.mark.parametrize("model", [GPT, {"family": "bigram"}], ids=["gpt", "bigram"])
def test_every_language_model_completes_prompts(tmp_path: Path, model: dict[str, Any]) -> None:
    """As the decoder with a cache does, up to the end of the context, also if the prompts differ in length."""
    recipe = tiny_recipe(tmp_path, model, f"train.samples={{prompts: {list(PROMPTS)}, max_new_tokens: 60}}")
    tokenizer_folder = tmp_path / "tiny" / "tokenizer"
    tokenizer = load_tokenizer(tokenizer_folder)
    sampler = prompt_sampler(recipe, tokenizer)
    assert sampler is not None
    network = tiny_model(recipe)
    completions = sampler.complete(network, Ranks(0, 1, 0, torch.device("cpu")))
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        overrides = [f"generate.prompt={prompt}", "generate.temperature=0", "generate.max_new_tokens=60"]
        wanted = load_recipe(tmp_path / "recipe.yaml", overrides)
        assert completion == "".join(complete(wanted, network, tokenizer)) != ""


def test_prompts_that_cannot_be_completed_are_refused(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(character_tokenizer(tmp_path / "tokenizer"))
    for prompt, message in (("caf\u00e9", "does not know 'é'"), ("a" * 600, "600 tokens, beyond .*shorten it")):
        recipe = load_recipe(RECIPE, [f"train.samples={{prompts: [{prompt}]}}", "model.max_position_embeddings=512"])
        with pytest.raises(RequestError, match=rf"train\.samples\.prompts.*{message}"):
            prompt_sampler(recipe, tokenizer)
    assert prompt_sampler(load_recipe(RECIPE), tokenizer) is None


def test_in_fine_tuning_a_prompt_is_a_user_message(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(character_tokenizer(tmp_path / "tokenizer"))
    template = chat_template.default(tokenizer)
    sampler = prompt_sampler(load_recipe(RECIPE, ["train.samples={prompts: [Why]}"]), tokenizer, template)
    assert sampler is not None and sampler._ids == [template.prompt([{"role": "user", "content": "Why"}])]
