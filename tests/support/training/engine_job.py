"""One rank's training of a small model (``engine.yaml``) on made tokens, which leaves what it saw in a file."""

import ctypes
import json
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from artefacts.signals import StopRequest
from configs.load import load_recipe
from configs.schema import Recipe
from configs.schema.models.classifier import ClassifierSection
from training.checkpoint.load import Resumption, newest_whole
from training.checkpoint.retention import Retention
from training.checkpoint.save import About, Saver
from training.data.batch import Batch
from training.distributed.ranks import Ranks
from training.engine.build import build_engine
from training.engine.deepspeed_config import clips_itself, deepspeed_config
from training.engine.expert_parallel import local_experts
from training.engine.partitions import partitions
from training.models.registry import build_model, init_weights
from training.objective import Objective
from training.optim.build import adopt_partitions, build_optimizer
from training.optim.schedules import learning_rate
from training.trainer.callbacks.checkpoint import CheckpointHook
from training.trainer.callbacks.hang import HangHook
from training.trainer.callbacks.metrics import MetricsHook
from training.trainer.callbacks.stability import SkippedSteps, SpikeDetector, WatchHook
from training.trainer.callbacks.validation import ValidationHook
from training.trainer.load_balancer import BIAS, Balancer
from training.trainer.trainer import Ended, Hook, StepResult, Trainer

RECIPE = Path(__file__).with_name("engine.yaml")


class MadeTokens:
    """Seeded batches with uneven target counts: some labels are masked, differently in each sample.

    Of families that learn otherwise than from text: each token stands for itself (tags), the source is the text
    backwards (pairs), or the first token says the class (labels); sources and texts differ in length.
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
        return self._as_learnt(Batch(tokens[:, :-1].contiguous(), labels, starts))

    def _as_learnt(self, text: Batch) -> Batch:
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
        whole = self.global_batch(step)
        picks = torch.arange(len(whole.inputs)).reshape(-1, ranks, micro_batch)[:, rank]
        length = whole.inputs.shape[1]
        starts = torch.arange(0, micro_batch * length + 1, length // 2, dtype=torch.int32)
        own = ("inputs", "labels", "lengths", "source", "source_lengths")
        rows = {name: tensor for name in own if (tensor := getattr(whole, name)) is not None}
        return [
            Batch(**{name: tensor[p] for name, tensor in rows.items()}, starts=None if whole.starts is None else starts)
            for p in picks
        ]


class Recorder(Hook):
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.skipped: list[str | None] = []
        self.norms: list[float] = []
        self.biases: list[list[float]] = []
        self.loads: list[list[list[float]]] = []
        self.terms: list[dict[str, float]] = []

    def after_step(self, result: StepResult) -> None:
        self.losses.append(result.loss)
        self.skipped.append(result.skipped)
        self.norms.append(result.grad_norm)
        self.biases = [load.bias for load in result.loads]
        self.terms.append(result.terms)
        self.loads.append([load.share for load in result.loads])


class Faulty:
    """Data and objective of which one rank's loss, or only its gradients, are no numbers at some steps."""

    def __init__(self, recipe: Recipe, ranks: Ranks, rank: int, loss: Sequence[int], gradient: Sequence[int]) -> None:
        self._data, self._objective = MadeTokens(recipe), Objective(recipe.model, recipe.train)
        self._here, self._loss, self._gradient = ranks.rank == rank, loss, gradient
        self._step = 0
        self.weights, self.counts = self._objective.weights, self._objective.counts
        self.cross_entropy = self._objective.cross_entropy

    def micro_batches(self, step: int, rank: int, ranks: int, micro_batch: int) -> list[Batch]:
        self._step = step + 1
        return self._data.micro_batches(step, rank, ranks, micro_batch)

    def __call__(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        sums = self._objective(model, batch)
        if self._here and self._step in self._loss:
            sums["cross_entropy"] = sums["cross_entropy"] * float("inf")
        if self._here and self._step in self._gradient:
            # Adds nothing, and the slope of the root at nothing is infinite.
            sums["cross_entropy"] = sums["cross_entropy"] + 0 * (0 * sums["cross_entropy"]).sqrt()
        return sums


class Hang(Hook):
    """After a step one rank sleeps in C, the interpreter's lock in its hand."""

    def __init__(self, ranks: Ranks, rank: int, step: int) -> None:
        self._here, self._step = ranks.rank == rank, step

    def after_step(self, result: StepResult) -> None:
        if self._here and result.step == self._step:
            ctypes.PyDLL(None).sleep(1000)


class FullDisk(Hook):
    """After step ``first`` a file can grow no more than a little on the last rank, until after step ``last``."""

    def __init__(self, first: int, last: int, ranks: Ranks) -> None:
        self._first, self._last, self._there = first, last, ranks.rank == ranks.size - 1

    def after_step(self, result: StepResult) -> None:
        limits = {self._first: 1000, self._last: resource.RLIM_INFINITY}
        if self._there and result.step in limits:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limits[result.step], resource.RLIM_INFINITY))


def train_once(
    out: Path,
    overrides: list[str],
    ranks: Ranks,
    begin_from: Path | None = None,
    full_disk: tuple[int, int] | None = None,
    faults: dict[str, Any] | None = None,
    hang: dict[str, int] | None = None,
    frozen: str | None = None,
    swap_to: str | None = None,
) -> None:
    """Train from the newest checkpoint in ``begin_from`` or ``out``, or from nothing, to the end.

    Or to ``train.simulate_crash_at``.

    Leaves a checkpoint there and ``seen.json`` in ``out``. The rest: see ``tests.support.training.grid.Task``.
    """
    recipe = load_recipe(RECIPE, overrides)
    train = recipe.train
    torch.manual_seed(ranks.rank)
    model = build_model(recipe.model, recipe.vocab_size)
    own = local_experts(ranks.rank, recipe.model.expert_count, recipe.expert_parallel)
    init_weights(model, recipe.run.seed, own)
    shun_the_first_experts(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(frozen is None or frozen not in name)
    model.set_activation_checkpointing(train.activation_checkpointing)
    optimizer = build_optimizer(model, train.optimizer, train.learning_rate, recipe.expert_parallel)
    experts = recipe.expert_parallel if recipe.model.has_experts else None
    config = deepspeed_config(train, ranks.size, experts, train.global_batch, recipe.micro_batch)
    if swap_to:
        config["zero_optimization"]["offload_optimizer"] = {"device": "nvme", "nvme_path": swap_to}
    checkpoints = out / "checkpoints"
    sizes = {"ranks": ranks.size, "expert_parallel": recipe.expert_parallel}
    about = About({"run": "test"}, {}, {}, {**sizes, "zero_stage": train.zero_stage})
    found = newest_whole(begin_from or checkpoints, ranks)
    resumption = Resumption(found, about) if found else None
    engine = build_engine(model, optimizer, config, ranks)
    adopt_partitions(optimizer, engine)
    replaced = any(hasattr(module, "ep_size") for module in engine.module.modules())
    assert replaced == recipe.model.has_experts, "AutoEP replaced nothing, or what it should not"
    balancer, skipped = (
        Balancer(engine.module, train.router_bias_update_rate),
        SkippedSteps(train.watch.skipped_in_a_row),
    )
    if resumption:
        state = resumption.load(engine, ranks)
        balancer.restore(state["balance"])
        skipped.restore(state["skipped"])
    recorder = Recorder()
    start = found.step if found else 0
    retention = Retention(train.keep, train.keep_every, train.keep_best)
    resumed = found.step if found and not begin_from else None
    saver = Saver(partitions(engine), checkpoints, about, ranks, retention, resumed)

    def state_now() -> dict[str, Any]:
        return {"balance": balancer.state(), "skipped": skipped.state()}

    spikes = SpikeDetector(train.watch.spike_window, train.watch.spike_deviations)
    metrics = MetricsHook(out, "test", start, train.steps, 1.0, 1, ranks)
    watched = HangHook(out / "stacks", train.watch.hang_seconds, ranks.rank)
    held_out = [MadeTokens(recipe).micro_batches(100 + number, 0, 1, 2)[0] for number in range(3)]
    validation = ValidationHook(engine, Objective(recipe.model, train), held_out, train.eval_every, metrics, ranks)

    def counts(step: int) -> dict[str, Any]:
        return {"validation_loss": validation.loss_at(step)}

    checkpoint = CheckpointHook(saver, train.save_every, start, counts, state_now)
    wrong = [*([FullDisk(*full_disk, ranks)] if full_disk else []), *([Hang(ranks, **hang)] if hang else [])]
    hooks = [
        recorder,
        *wrong,
        *([validation] if train.eval_every else []),
        WatchHook(skipped, spikes, metrics, ranks.first),
        checkpoint,
        metrics,
        watched,
    ]
    faulty = Faulty(recipe, ranks, **faults) if faults else None
    trainer = Trainer(
        engine,
        faulty or MadeTokens(recipe),
        faulty or Objective(recipe.model, train),
        lambda step: learning_rate(step, train.steps, train.learning_rate, train.schedule),
        balancer,
        ranks,
        hooks,
        StopRequest(),
        train.max_grad_norm if clips_itself(train) else None,
    )
    with watched:
        if trainer.run(start, train.steps, train.simulate_crash_at) is Ended.LEFT:
            checkpoint.at_stop(train.simulate_crash_at or 0)
    dtype = next((str(b.dtype) for n, b in engine.module.named_buffers() if n.endswith(BIAS)), None)
    if ranks.first:
        (out / "seen.json").write_text(json.dumps({**vars(recorder), "bias_dtype": dtype}))
    engine.destroy()


def shun_the_first_experts(model: torch.nn.Module) -> None:
    """Begin with a bias that keeps half of the experts, all of some expert-parallel ranks, from getting a token."""
    for name, buffer in model.named_buffers():
        if name.endswith(BIAS):
            buffer[: len(buffer) // 2] -= 0.3
