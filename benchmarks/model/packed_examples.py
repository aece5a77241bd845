"""Fine-tuning with packed examples (``finetune.packing``) against examples that are padded to the longest.

    python -m benchmarks.model.packed_examples [--quick]

Forward and backward passes over complete steps of 32 real instructions, in micro-batches of at most 2,048 tokens, which
are chosen as ``make finetune`` chooses them. Both read the same examples in every step, and their losses are compared.
Speeds are in tokens per second, without padding.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from artefacts.checkout import CHECKOUT
from benchmarks.corpus import docstrings
from benchmarks.model.shapes import SHAPES, ours
from benchmarks.paired import Ratio, compare, seconds
from configs.load import load_recipe
from configs.run_layout import RunLayout
from configs.schema.models import ModelSection
from configs.schema.models.gpt import GptSection
from training.data.batch import Batch
from training.data.chat import ChatExamples
from training.data.examples import ExampleData
from training.data.order import sample_indices
from training.data.packed_examples import PackedExampleData
from training.models.registry import build_model, init_weights
from training.objective import Objective

BATCH, LENGTH, TOKENS, VOCAB = 32, 512, 2048, 4096
GPT = GptSection(
    hidden_size=384,
    num_hidden_layers=6,
    num_attention_heads=6,
    intermediate_size=1536,
    max_position_embeddings=LENGTH,
    initializer_range=0.02,
)


def measure(quick: bool = False) -> Iterator[Ratio]:
    """Measure a DeepSeek model and a GPT. ``quick`` uses fewer rounds."""
    with tempfile.TemporaryDirectory() as folder:
        examples = _examples(Path(folder))
        deepseek = ours(SHAPES["17M"], torch.float32, VOCAB)
        models: dict[str, tuple[ModelSection, Any]] = {"17M": (SHAPES["17M"], deepseek)}
        gpt = build_model(GPT, VOCAB)
        init_weights(gpt, 0)
        models["GPT 10M"] = (GPT, gpt)
        for size, (section, model) in models.items():
            yield _one(size, section, model, examples, 3 if quick else 7)


def _examples(folder: Path) -> ChatExamples:
    """Build chat examples from the shared instructions or, without them, from questions about Python."""
    from pipeline.documents import stage as documents
    from pipeline.examples import chat
    from tokenizer.train import train

    shared = Path(os.environ.get("MILLRACE_SHARED_DATA", CHECKOUT.parent / "shared" / "data")) / "instructions.json"
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in docstrings()[:4000]))
    source = [f"finetune.examples={{kind: files, path: {shared}}}"] if shared.exists() else []
    recipe = load_recipe(
        CHECKOUT / "configs" / "demo.yaml",
        [
            f"run.root={folder}",
            f"data.source={{kind: jsonl, path: {corpus}}}",
            f"tokenizer.vocab_size={VOCAB}",
            f"finetune.max_length={LENGTH}",
            *source,
        ],
    )
    documents.build(recipe)
    train(recipe)
    chat.build(recipe, recipe.finetune[0])
    return ChatExamples(RunLayout.of(recipe).examples_of(recipe.finetune[0].name), "train", 3)


def _one(size: str, section: ModelSection, model: Any, examples: ChatExamples, rounds: int) -> Ratio:
    steps = 2
    unpacked, packed = ExampleData(examples, BATCH, 0), PackedExampleData(examples, BATCH, LENGTH, 0)
    works = []
    for data, length, masked in ((packed, packed.tokens_per_example(steps), True), (unpacked, LENGTH, False)):
        micro_batch = max(n for n in range(1, BATCH + 1) if BATCH % n == 0 and n * length <= TOKENS)
        batches = [batch for step in range(steps) for batch in data.micro_batches(step, 0, 1, micro_batch)]
        train = load_recipe(CHECKOUT / "configs" / "demo.yaml", []).train
        off = {"sequence_loss": 0.0, "load_balance_loss": 0.0, "router_z_loss": 0.0, "mask_documents": masked}
        works.append(_work(model, Objective(section, train.model_copy(update=off)), batches))
    losses = [work() for work in works]
    assert abs(losses[0] - losses[1]) < 1e-5 * losses[1], f"losses differ: {losses}"
    indices = [sample_indices(step * BATCH, BATCH, len(examples), 0) for step in range(steps)]
    tokens = sum(int(examples.lengths(of_step).sum()) for of_step in indices)
    mean = round(tokens / steps / BATCH)
    name = f"fine-tuning step, {size} fp32, packed examples (of {mean} tokens on average) against padded ones"
    return compare(name, lambda: seconds(works[0]), lambda: seconds(works[1]), tokens, "tokens/s", None, rounds)


def _work(model: Any, objective: Objective, batches: Sequence[Batch]) -> Callable[[], float]:
    def work() -> float:
        model.zero_grad()
        total = 0.0
        for batch in batches:
            loss = objective(model, batch)["cross_entropy"]
            loss.backward()
            total += float(loss.detach())
        return total

    model.train()
    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    for ratio in measure(parser.parse_args().quick):
        print(ratio)


if __name__ == "__main__":
    main()
