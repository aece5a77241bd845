"""Evaluates a task model on the held-out examples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from artefacts import manifest
from artefacts.progress import bar
from configs.run_layout import RunLayout
from configs.schema import Recipe
from tokenizer.base import Tokenizer
from tokenizer.registry import load_tokenizer
from tokenizer.special_tokens import IGNORED
from training.data.batch import Batch
from training.data.build import task_examples
from training.evaluate.accuracy import ClassScores
from training.inference.answer import decode_targets
from training.layers.cross_entropy import cross_entropy_sum
from training.model_loading import best_device, load_model
from training.objective import Objective

#: Number of examples whose outputs are kept as text.
_SAMPLES = 8


@torch.no_grad()
def evaluate_task(recipe: Recipe, layout: RunLayout, checkpoint: Path) -> dict[str, Any]:
    """Evaluate a checkpoint and return the contents of ``evaluation.json``, under ``task``.

    For token classification and seq2seq, the results are the loss, the accuracy per token (with teacher forcing for
    seq2seq), and the fraction of sequences (decoded for seq2seq) that match exactly. For sequence classification, the
    results are the loss, the accuracy, F1 scores and the confusion matrix.
    """
    device = best_device(recipe)
    model = load_model(recipe, checkpoint, device)
    tokenizer = load_tokenizer(layout.tokenizer)
    examples = task_examples(recipe, layout, "held-out")
    limit, batch_size = recipe.evaluate.max_tokens, recipe.evaluate.batch
    # Examples are in source order, in which examples of the same class may be adjacent, so shuffle before limiting.
    batches = examples.in_order(batch_size) if limit is None else examples.shuffled(batch_size, recipe.run.seed)
    measured = Measured(recipe, model, device, tokenizer)
    with bar(len(examples), "example", "held-out examples") as progress:
        for batch in batches:
            measured.add(batch.to(device))
            progress.update(len(batch.labels))
            if limit is not None and measured.targets >= limit:
                break
    results = {
        "kind": recipe.task,
        "checkpoint": checkpoint.name,
        "examples": measured.examples,
        "loss": measured.nats / measured.targets,
    }
    if recipe.task == "sequence_classification":
        names = manifest.require(layout.examples, "data").details["classes"]
        scores = ClassScores.of(measured.true, measured.predicted, names)
        return {"task": {**results, **_of_classes(scores)}}
    sequences = {
        "token_accuracy": measured.right / measured.targets,
        "exact": measured.exact / measured.examples,
        "samples": measured.samples,
    }
    return {"task": {**results, **sequences}}


def _of_classes(scores: ClassScores) -> dict[str, Any]:
    return {
        "accuracy": scores.accuracy,
        "macro_f1": scores.macro_f1,
        "majority": scores.majority,
        "classes": scores.per_class(),
        "confusion": scores.confusion.tolist(),
    }


class Measured:
    """Running totals over the batches."""

    def __init__(self, recipe: Recipe, model: Any, device: torch.device, tokenizer: Tokenizer) -> None:
        self._recipe, self._model, self._device, self._tokenizer = recipe, model, device, tokenizer
        self._objective = Objective(recipe.model, recipe.train)
        self.nats, self.targets, self.right, self.exact = 0.0, 0, 0, 0
        self.examples = 0
        self.true: list[int] = []
        self.predicted: list[int] = []
        self.samples: list[dict[str, str]] = []

    def add(self, batch: Batch) -> None:
        logits = self._objective.logits(self._model, batch)
        self.nats += float(cross_entropy_sum(logits, batch.labels))
        self.targets += batch.targets
        self.examples += len(batch.labels)
        if self._recipe.task == "sequence_classification":
            self.true += batch.labels.tolist()
            self.predicted += logits.argmax(-1).tolist()
            return
        # Rows of the head beyond the vocabulary are padding.
        best = logits[..., : self._tokenizer.vocab_size].argmax(-1)
        kept = batch.labels != IGNORED
        self.right += int(((best == batch.labels) & kept).sum())
        wanted = [row[mask].tolist() for row, mask in zip(batch.labels, kept, strict=True)]
        if self._recipe.task == "token_classification":
            sources = [row[:size].tolist() for row, size in zip(batch.inputs, map(len, wanted), strict=True)]
            outputs = [row[mask].tolist() for row, mask in zip(best, kept, strict=True)]
        else:
            assert batch.source is not None and batch.source_lengths is not None
            sizes = batch.source_lengths.tolist()
            sources = [row[:size].tolist() for row, size in zip(batch.source, sizes, strict=True)]
            outputs = decode_targets(
                self._recipe, self._model, self._tokenizer, sources, self._recipe.train.context_length
            )
        self.exact += sum(output == target for output, target in zip(outputs, wanted, strict=True))
        self._keep(sources, wanted, outputs)

    def _keep(self, *columns: Sequence[Sequence[int]]) -> None:
        names = ("source", "target", "output")
        for row in zip(*columns, strict=True):
            if len(self.samples) == _SAMPLES:
                return
            texts = [self._tokenizer.decode(list(ids)) for ids in row]
            self.samples.append(dict(zip(names, texts, strict=True)))
