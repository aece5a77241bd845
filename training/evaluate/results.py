"""Evaluates a run's stages: loss on the validation text and on other texts, held-out answers, tasks, and a sample.

Everything that takes long is stored as soon as it is measured, so an interrupted evaluation continues where it stopped.
"""

import math
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from artefacts import atomic, command_hints, manifest
from artefacts.errors import RequestError
from configs.checks.run_weights import target
from configs.run_layout import RunLayout
from configs.schema import Recipe
from configs.schema.finetune import FinetuneSection
from pipeline.sources.base import Source
from pipeline.tokens.indexed_dataset import IndexedDataset, shard_prefixes
from tokenizer.registry import load_tokenizer
from training.data.build import validation_windows
from training.data.chat import ChatExamples
from training.data.windows import TokenWindows
from training.evaluate import task_files, texts
from training.evaluate.baselines import bigram_nats, compressed_bytes
from training.evaluate.battery.build import write_battery
from training.evaluate.loss import Measured, measure
from training.evaluate.preferences import evaluate_preferences
from training.inference.completion import complete
from training.model_loading import best_device, chat_template_of, load_model
from training.objective import Objective
from training.runs import check_adapter, finished_checkpoint

#: Maximum number of training tokens that the bigram baseline counts.
_BIGRAM_TOKENS = 50_000_000
#: Folder of the battery in the evaluation.
BATTERY = "battery"

Facts = dict[str, Any]


class Evaluation:
    """An evaluation of a run."""

    def __init__(
        self, recipe: Recipe, layout: RunLayout, sources: Mapping[str, Source], scratch: Path, battery: Path
    ) -> None:
        """Read the texts and load the tasks, so that what is wrong with them is reported before anything is measured.

        Args:
            recipe: the run's recipe.
            layout: the run's layout.
            sources: the sources of ``evaluate.texts``.
            scratch: folder for intermediate files: the texts as tokens, and what has been measured so far.
            battery: folder for the battery, if a task needs it.

        Raises:
            RequestError: a text cannot be read, or a task cannot be loaded.
        """
        self._recipe, self._layout, self._sources, self._scratch = recipe, layout, sources, scratch
        self._device = best_device(recipe)
        self._tokenizer = load_tokenizer(layout.tokenizer)
        self._loaded: tuple[tuple[Path, FinetuneSection | None], Any] | None = None
        for name in sources:
            self._text(name)
        if tasks := recipe.evaluate.tasks:
            folders = task_files.folders(recipe.evaluate, battery)
            if battery in folders:
                write_battery(battery, recipe, layout, self._tokenizer)
            # lm-eval is an optional package, and takes a second to import.
            from training.evaluate.harness.run import Tasks

            self._tasks = Tasks(tasks, folders)

    def run(self, checkpoints: Mapping[str, Path], text_bytes: int) -> Facts:
        """Return the contents of ``evaluation.json``.

        Args:
            checkpoints: stage -> folder of its checkpoint, in the order of training. The first stage is pretraining.
            text_bytes: size of the entire validation text in bytes.
        """
        for stage in [*checkpoints][1:]:  # while the pretrained model is loaded
            section = self._recipe.stage(stage)
            if not section.preference and self._recipe.start_of(section) == "pretrain":
                self._before(stage)
        facts = {stage: self._stage(stage, checkpoint, text_bytes) for stage, checkpoint in checkpoints.items()}
        results: Facts = {
            "stages": [*checkpoints],
            "experts": facts["pretrain"].pop("experts"),
            "pretrain": facts.pop("pretrain"),
            "finetune": facts,
            "baselines": self._once("baselines", lambda: self._baselines(text_bytes)),
        }
        if self._recipe.generate.prompt:
            last = [*checkpoints.values()][-1]
            template = chat_template_of(last, self._tokenizer)
            completion = "".join(complete(self._recipe, self._model(last), self._tokenizer, template=template))
            results["samples"] = [{"prompt": self._recipe.generate.prompt, "completion": completion}]
        return results

    def measure_checkpoint(self, stage: str, checkpoint: Path, text_bytes: int) -> Facts:
        """Return a checkpoint's loss on the validation text and on the other texts, and its scores of the tasks."""
        facts = {"checkpoint": checkpoint.name, "step": _step(checkpoint)}
        facts |= self._validation(f"{stage} {checkpoint.name}", checkpoint, text_bytes)
        facts.pop("experts")
        facts["texts"] = {name: self._text_loss(name, checkpoint) for name in self._sources}
        return facts | ({"tasks": self._scores(stage, checkpoint)} if self._recipe.evaluate.tasks else {})

    def _stage(self, stage: str, checkpoint: Path, text_bytes: int) -> Facts:
        facts = {"checkpoint": checkpoint.name, "step": _step(checkpoint)}
        facts |= self._once(f"{stage}-validation", lambda: self._validation(stage, checkpoint, text_bytes))
        facts["texts"] = {
            name: self._once(f"{stage}-text-{name}", partial(self._text_loss, name, checkpoint))
            for name in self._sources
        }
        if self._recipe.evaluate.tasks:
            facts["tasks"] = self._once(f"{stage}-tasks", lambda: self._scores(stage, checkpoint))
        if stage == "pretrain":
            return facts
        facts.pop("experts")
        if self._recipe.stage(stage).preference:
            return facts | self._once(f"{stage}-pairs", lambda: self._pairs(stage, checkpoint))
        after = self._once(f"{stage}-after", lambda: self._answers(stage, checkpoint, "after"))
        before = self._before(stage)
        answers = {"held_out_loss_before": before["loss"], "held_out_loss_after": after["loss"]}
        return facts | {"examples": after["examples"], **answers}

    def _once(self, name: str, work: Callable[[], Facts]) -> Facts:
        """Return the result that is stored under a name, or compute and store it."""
        path = self._scratch / f"{name}.json"
        if not path.exists():
            atomic.write_json(path, work())
        facts: Facts = atomic.read_json(path)
        return facts

    def _model(self, checkpoint: Path, starts: FinetuneSection | None = None) -> Any:
        """Return a checkpoint's model or, with ``starts``, the model with which that stage starts from it."""
        wanted = checkpoint, starts
        if self._loaded is None or self._loaded[0] != wanted:
            self._loaded = None  # frees the other model first
            self._loaded = wanted, load_model(self._recipe, checkpoint, self._device, starts)
        return self._loaded[1]

    def _validation(self, label: str, checkpoint: Path, text_bytes: int) -> Facts:
        limit, batch = self._recipe.evaluate.max_tokens, self._recipe.evaluate.batch
        windows = validation_windows(self._recipe, self._layout).in_order(batch, limit)
        objective = Objective(self._recipe.model, self._recipe.train)
        measured = measure(self._model(checkpoint), objective, windows, self._device, f"validation, {label}")
        facts = loss_facts(measured, len(self._validation_text) if limit else text_bytes)
        return facts | {"experts": {layer: _load_facts(load) for layer, load in measured.loads.items()}}

    def _text(self, name: str) -> tuple[Path, dict[str, int]]:
        """Tokenize a text. Returns the folder with its shard, and its counts."""
        folder = self._scratch / f"text-{name}"
        return folder, texts.write_tokens(self._recipe, name, self._sources[name], self._tokenizer, folder)

    def _text_loss(self, name: str, checkpoint: Path) -> Facts:
        (folder, counts), limit = self._text(name), self._recipe.evaluate.max_tokens
        boundary = self._tokenizer.end_of_text_id if self._recipe.train.mask_documents else None
        windows = TokenWindows(folder, texts.SPLIT, self._recipe.train.context_length, boundary)
        batches = windows.in_order(self._recipe.evaluate.batch, limit)
        objective = Objective(self._recipe.model, self._recipe.train)
        measured = measure(self._model(checkpoint), objective, batches, self._device, f"text {name}")
        cut = limit is not None and limit < counts["tokens"]
        text_bytes = len(self._decoded(folder, texts.SPLIT, limit)) if cut else counts["bytes"]
        return {"documents": counts["documents"], **loss_facts(measured, text_bytes)}

    def _scores(self, stage: str, checkpoint: Path) -> Facts:
        from training.evaluate.harness.language_model import MillraceLM

        section = self._recipe.evaluate
        length = self._recipe.model.max_seq_len or self._recipe.train.context_length
        template = chat_template_of(checkpoint, self._tokenizer)
        model = MillraceLM(self._model(checkpoint), self._tokenizer, length, section.batch, template)
        return self._tasks.run(model, section.shots, section.limit, chat=section.chat and stage != "pretrain")

    def _answers(self, stage: str, checkpoint: Path, when: str) -> Facts:
        """Measure a model's loss on a stage's held-out answers. ``when`` labels the progress bar."""
        examples = ChatExamples(self._layout.examples_of(stage), "held-out", self._tokenizer.pad_id)
        # Each answer is a separate sample, so there are no document boundaries to mask.
        train = self._recipe.train.model_copy(update={"mask_documents": False})
        batches = examples.in_order(self._recipe.evaluate.batch)
        objective = Objective(self._recipe.model, train)
        measured = measure(
            self._model(checkpoint), objective, batches, self._device, f"held-out answers, {stage}, {when}"
        )
        return {"examples": len(examples), "loss": measured.loss}

    def _before(self, stage: str) -> Facts:
        """Measure the loss on a stage's held-out answers with the weights that it started from."""
        return self._once(f"{stage}-before", lambda: self._answers(stage, self._start_of(stage), "before"))

    def _start_of(self, stage: str) -> Path:
        """Return the checkpoint that a stage started from.

        Raises:
            RequestError: it was removed.
        """
        start = self._recipe.start_of(self._recipe.stage(stage))
        folder = self._layout.training(start)
        if (last := finished_checkpoint(folder)) is None:
            raise RequestError(
                f"{folder} is missing or not finished, so {stage} cannot be compared with its start weights: run "
                f"`{command_hints.make(target(start))}` first"
            )
        return last[0]

    def _pairs(self, stage: str, checkpoint: Path) -> Facts:
        """Measure the preferences that a stage has learned, compared with the model before its first step."""
        section, start = self._recipe.stage(stage), self._start_of(stage)
        check_adapter(self._recipe, self._layout, section)
        starts = section if section.lora or section.reset else None
        models = (partial(self._model, start, starts), partial(self._model, checkpoint))
        return evaluate_preferences(self._recipe, self._layout, section, *models, self._device)

    def _baselines(self, text_bytes: int) -> Facts:
        limit, text = self._recipe.evaluate.max_tokens, self._validation_text
        size = len(text) if limit else text_bytes
        bigram = _bigram(self._layout, limit, self._recipe.vocab_size)
        return {
            "bigram": {"bits_per_byte": bigram.bits_per_byte(size)},
            "zstd -19": {"bits_per_byte": 8 * compressed_bytes(text) / size},
        }

    @cached_property
    def _validation_text(self) -> bytes:
        return self._decoded(self._layout.tokens, "val", self._recipe.evaluate.max_tokens)

    def _decoded(self, folder: Path, split: str, limit: int | None) -> bytes:
        """Decode the first tokens of a split's shards, and return the concatenated text as UTF-8."""
        return "".join(self._tokenizer.decode(stream.tolist()) for stream in _streams(folder, split, limit)).encode()


def loss_facts(measured: Measured, text_bytes: int) -> Facts:
    """Return the results on a text: the loss in nats per token, and what follows from it."""
    return {
        "loss": measured.loss,
        "perplexity": math.exp(min(measured.loss, 700.0)),
        "tokens": measured.targets,
        "bytes": text_bytes,
        "bits_per_byte": measured.bits_per_byte(text_bytes),
    }


def _step(checkpoint: Path) -> int:
    return int(manifest.require(checkpoint, "pretrain").counts["step"])


def _load_facts(load: list[float]) -> Facts:
    return {"load": load, "max_over_mean": max(load), "variation": float(np.std(load))}


def _streams(folder: Path, split: str, limit: int | None) -> list[np.ndarray]:
    """Return a split's shards as token streams, up to ``limit`` tokens in total."""
    streams, left = [], limit
    for prefix in shard_prefixes(folder, split):
        stream = IndexedDataset(prefix).tokens[:left]
        streams.append(stream)
        if left is not None:
            left = max(0, left - len(stream))
    return [stream for stream in streams if len(stream) > 1]


def _bigram(layout: RunLayout, limit: int | None, vocab_size: int) -> Measured:
    validation = _streams(layout.tokens, "val", limit)
    nats = bigram_nats(_streams(layout.tokens, "train", _BIGRAM_TOKENS), validation, vocab_size)
    return Measured(nats, sum(len(stream) - 1 for stream in validation), {})
