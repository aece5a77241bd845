"""One rank's training of a small model (``engine.yaml``) on synthetic tokens, which writes its results to a file."""

import ctypes
import json
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from artefacts.signals import StopRequest
from artefacts.training_folder import TrainingRun
from configs.load import load_recipe
from configs.schema import Recipe
from configs.schema.adapter import LoraSection
from configs.schema.models.classifier import ClassifierSection
from tests.support.training.tiny_run import character_tokenizer
from tokenizer.registry import load_tokenizer
from training.checkpoint.load import Resumption, newest_complete
from training.checkpoint.retention import Retention
from training.checkpoint.save import RunIdentity, Saver
from training.data.batch import Batch
from training.distributed.ranks import Ranks
from training.engine.build import build_engine
from training.engine.deepspeed_config import deepspeed_config
from training.engine.expert_parallel import local_experts
from training.engine.partitions import partitions
from training.inference.prompt_sampler import prompt_sampler
from training.models.registry import build_model, init_weights
from training.objective import Objective
from training.optim.build import bind_partitions, build_optimizer
from training.optim.trained_part import TrainedPart
from training.trainer.callback import Callback, StepResult
from training.trainer.callbacks.build import build_callbacks
from training.trainer.callbacks.checkpoint import CheckpointCallback
from training.trainer.context import TrainingContext
from training.trainer.load_balancer import BIAS, Balancer
from training.trainer.trainer import Ended, Trainer

RECIPE = Path(__file__).with_name("engine.yaml")


class SyntheticTokens:
    """Seeded batches with uneven target counts: some labels are masked, differently in each sample.

    For other tasks than language modeling, the label of a token is the token itself (tags), the source is the text
    backwards (pairs), or the first token decides the class (labels); sources and texts differ in length.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def global_batch(self, step: int) -> Batch:
        size, length = self.recipe.train.global_batch, self.recipe.train.context_length
        generator = torch.Generator().manual_seed(1000 + step)
        # Squared uniforms: frequent and rare tokens, so that routing is uneven.
        tokens = (torch.rand(size, length + 1, generator=generator) ** 2 * self.recipe.vocab_size).long()
        labels = tokens[:, 1:].clone()
        for row in range(size):
            labels[row, : row * 3] = -100
        starts = torch.arange(0, size * length + 1, length // 2, dtype=torch.int32)
        return self._for_task(Batch(tokens[:, :-1].contiguous(), labels, starts))

    def _for_task(self, text: Batch) -> Batch:
        model, size = self.recipe.model, len(text.inputs)
        lengths = text.inputs.shape[1] - 2 * torch.arange(size)
        if model.task == "token_classification":
            shown = torch.arange(text.inputs.shape[1]) < lengths[:, None]
            return Batch(text.inputs, text.inputs.where(shown, -100), lengths=lengths)
        if model.task == "seq2seq":
            return Batch(text.inputs, text.labels, source=text.inputs.flip(1), source_lengths=lengths)
        if isinstance(model, ClassifierSection):
            return Batch(text.inputs, text.inputs[:, 0] % model.classes, lengths=lengths)
        return text

    def micro_batches(self, step: int, rank: int, ranks: int, micro_batch: int) -> list[Batch]:
        batch = self.global_batch(step)
        picks = torch.arange(len(batch.inputs)).reshape(-1, ranks, micro_batch)[:, rank]
        length = batch.inputs.shape[1]
        starts = torch.arange(0, micro_batch * length + 1, length // 2, dtype=torch.int32)
        names = ("inputs", "labels", "lengths", "source", "source_lengths")
        rows = {name: tensor for name in names if (tensor := getattr(batch, name)) is not None}
        return [
            Batch(**{name: tensor[p] for name, tensor in rows.items()}, starts=None if batch.starts is None else starts)
            for p in picks
        ]


class Recorder(Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.skipped: list[str | None] = []
        self.norms: list[float] = []
        self.biases: list[list[float]] = []
        self.loads: list[list[list[float]]] = []
        self.terms: list[dict[str, float]] = []

    def on_step_end(self, result: StepResult) -> None:
        self.losses.append(result.loss)
        self.skipped.append(result.skipped)
        self.norms.append(result.grad_norm)
        self.biases = [load.bias for load in result.loads]
        self.terms.append(result.terms)
        self.loads.append([load.share for load in result.loads])


class Faulty:
    """Data and objective with one rank whose loss, or only its gradients, are not finite at some steps."""

    def __init__(self, recipe: Recipe, ranks: Ranks, rank: int, loss: Sequence[int], gradient: Sequence[int]) -> None:
        self._data, self._objective = SyntheticTokens(recipe), Objective(recipe.model, recipe.train)
        self._is_faulty, self._loss, self._gradient = ranks.rank == rank, loss, gradient
        self._step = 0
        self.weights, self.counts = self._objective.weights, self._objective.counts
        self.validate, self.cross_entropy = self._objective.validate, self._objective.cross_entropy

    def micro_batches(self, step: int, rank: int, ranks: int, micro_batch: int) -> list[Batch]:
        self._step = step + 1
        return self._data.micro_batches(step, rank, ranks, micro_batch)

    def __call__(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        sums = self._objective(model, batch)
        if self._is_faulty and self._step in self._loss:
            sums["cross_entropy"] = sums["cross_entropy"] * float("inf")
        if self._is_faulty and self._step in self._gradient:
            # Adds 0, with a gradient that is not finite: the slope of the square root at 0 is infinite.
            sums["cross_entropy"] = sums["cross_entropy"] + 0 * (0 * sums["cross_entropy"]).sqrt()
        return sums


class Hang(Callback):
    """After a step one rank sleeps in C while it holds the GIL."""

    def __init__(self, ranks: Ranks, rank: int, step: int) -> None:
        self._hangs, self._step = ranks.rank == rank, step

    def on_step_end(self, result: StepResult) -> None:
        if self._hangs and result.step == self._step:
            ctypes.PyDLL(None).sleep(1000)


class FullDisk(Callback):
    """On the last rank, files cannot grow beyond 1000 bytes after step ``first`` until after step ``last``."""

    def __init__(self, first: int, last: int, ranks: Ranks) -> None:
        self._first, self._last, self._is_last_rank = first, last, ranks.rank == ranks.size - 1

    def on_step_end(self, result: StepResult) -> None:
        limits = {self._first: 1000, self._last: resource.RLIM_INFINITY}
        if self._is_last_rank and result.step in limits:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limits[result.step], resource.RLIM_INFINITY))


def train_once(
    out: Path,
    overrides: list[str],
    ranks: Ranks,
    begin_from: Path | None = None,
    full_disk: tuple[int, int] | None = None,
    faults: dict[str, Any] | None = None,
    hang: dict[str, int] | None = None,
    trained: dict[str, Any] | None = None,
    swap_to: str | None = None,
) -> None:
    """Train from the newest checkpoint in ``begin_from`` or ``out``, or from nothing, to the last step.

    Or to ``train.simulate_crash_at``. Writes a checkpoint, and ``seen.json``, to ``out``. For the other arguments see
    ``tests.support.training.grid.Task``.
    """
    recipe = load_recipe(RECIPE, overrides)
    train = recipe.train
    torch.manual_seed(ranks.rank)
    part = trained_part(**trained or {})
    engine = _engine(recipe, ranks, part, swap_to)
    context = _context(recipe, engine, ranks, out, begin_from, part, faults)
    recorder = Recorder()
    callbacks: list[Callback] = [recorder]
    callbacks += [FullDisk(*full_disk, ranks)] if full_disk else []
    callbacks += [Hang(ranks, **hang)] if hang else []
    callbacks += build_callbacks(context)
    if Trainer(context, callbacks).run() is Ended.ABORTED:
        # Save what a simulated crash would lose, so that another run can resume there.
        (checkpoint,) = (callback for callback in callbacks if isinstance(callback, CheckpointCallback))
        checkpoint.on_interrupt(train.simulate_crash_at or 0)
    dtype = next((str(b.dtype) for n, b in engine.module.named_buffers() if n.endswith(BIAS)), None)
    if ranks.first:
        (out / "seen.json").write_text(json.dumps({**vars(recorder), "bias_dtype": dtype}))
    engine.destroy()


def trained_part(lora: dict[str, Any] | None = None, **fields: Any) -> TrainedPart:
    """The part to train, from the keys of its ``lora`` section and its other fields."""
    return TrainedPart(LoraSection(**lora) if lora else None, **fields)


def _engine(recipe: Recipe, ranks: Ranks, trained: TrainedPart, swap_to: str | None) -> Any:
    train = recipe.train
    model = build_model(recipe.model, recipe.vocab_size)
    experts = local_experts(ranks.rank, recipe.model.expert_count, recipe.expert_parallel)
    init_weights(model, recipe.run.seed, experts)
    shun_the_first_experts(model)
    trained.prepare(model, recipe.run.seed, new=True)
    model.set_activation_checkpointing(train.activation_checkpointing)
    scales = trained.rate_scales
    optimizer = build_optimizer(model, train.optimizer, train.learning_rate, recipe.expert_parallel, scales)
    expert_parallel = recipe.expert_parallel if recipe.model.has_experts else None
    config = deepspeed_config(train, ranks.size, expert_parallel, train.global_batch, recipe.micro_batch)
    if swap_to:
        config["zero_optimization"]["offload_optimizer"] = {"device": "nvme", "nvme_path": swap_to}
    engine = build_engine(model, optimizer, config, ranks)
    bind_partitions(optimizer, engine)
    replaced = any(hasattr(module, "ep_size") for module in engine.module.modules())
    assert replaced == recipe.model.has_experts, "AutoEP replaced nothing, or what it should not"
    return engine


def _context(
    recipe: Recipe,
    engine: Any,
    ranks: Ranks,
    out: Path,
    begin_from: Path | None,
    trained: TrainedPart,
    faults: dict[str, Any] | None,
) -> TrainingContext:
    """The context of a run in ``out``, with the engine restored from its newest checkpoint if there is one."""
    train, checkpoints = recipe.train, out / "checkpoints"
    topology = {"ranks": ranks.size, "expert_parallel": recipe.expert_parallel, "zero_stage": train.zero_stage}
    run = {"lora": trained.lora.identity()} if trained.lora else {}
    identity = RunIdentity({"run": "test"}, {}, {}, topology, run)
    checkpoint = newest_complete(begin_from or checkpoints, ranks)
    balancer = Balancer(engine.module, train.router_bias_update_rate)
    restored: dict[str, Any] = {}
    if checkpoint:
        restored = Resumption(checkpoint, identity).load(engine, ranks)
        balancer.load_state_dict(restored["balance"])
    start = checkpoint.step if checkpoint else 0
    keep_best = train.early_stopping is not None
    retention = Retention(train.keep, train.keep_every, max(train.keep_best, int(keep_best)))
    faulty = Faulty(recipe, ranks, **faults) if faults else None
    held_out = [SyntheticTokens(recipe).micro_batches(100 + number, 0, 1, 2)[0] for number in range(3)]
    return TrainingContext(
        run=TrainingRun("test", out, {"run": "test"}, {}),
        train=train,
        ranks=ranks,
        engine=engine,
        objective=faulty or Objective(recipe.model, train),
        data=faulty or SyntheticTokens(recipe),
        validation=held_out if train.eval_every else [],
        balancer=balancer,
        saver=Saver(partitions(engine), checkpoints, identity, ranks, retention, None if begin_from else start or None),
        stop=StopRequest(),
        global_batch=train.global_batch,
        flops_per_token=1.0,
        start_step=start,
        restored=restored,
        keep_best=keep_best,
        sampler=prompt_sampler(recipe, load_tokenizer(character_tokenizer(out / "tokenizer"))),
    )


def shun_the_first_experts(model: torch.nn.Module) -> None:
    """Start with a bias that keeps half of the experts, all of some expert-parallel ranks, from getting a token."""
    for name, buffer in model.named_buffers():
        if name.endswith(BIAS):
            buffer[: len(buffer) // 2] -= 0.3
