"""What pretraining and fine-tuning do alike: an engine around a model, hooks, resuming, the loop, the manifest."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from artefacts import lock
from artefacts.errors import RequestError, RunError
from artefacts.progress import log
from artefacts.signals import StopRequest
from artefacts.training_folder import TrainingRun
from configs import command
from configs.load import dump_recipe
from configs.schema import Recipe
from configs.schema.train import TrainSection
from training.checkpoint.index import folder_name
from training.checkpoint.load import Found, Resumption, newest_whole
from training.checkpoint.retention import Retention
from training.checkpoint.save import About, Saver
from training.data.batch import Batch, Data
from training.data.prefetch import Prefetched
from training.distributed.join import join
from training.distributed.ranks import Ranks, broadcast_value, leave
from training.engine.build import build_engine
from training.engine.deepspeed_config import clips_itself, deepspeed_config
from training.engine.expert_parallel import local_experts
from training.engine.partitions import partitions
from training.estimate.flops import flops_per_token
from training.estimate.parameters import parameters
from training.models.registry import build_model
from training.objective import Objective
from training.optim.build import adopt_partitions, build_optimizer
from training.optim.schedules import learning_rate
from training.trainer.callbacks.checkpoint import CheckpointHook
from training.trainer.callbacks.hang import HangHook
from training.trainer.callbacks.metrics import MetricsHook
from training.trainer.callbacks.stability import SkippedSteps, SpikeDetector, WatchHook
from training.trainer.callbacks.validation import ValidationHook
from training.trainer.load_balancer import Balancer
from training.trainer.trainer import Ended, Trainer


@dataclass(frozen=True)
class Job:
    """One training run, ready to be started on any number of ranks.

    Attributes:
        run: its folder and identity.
        train: the train section it follows; fine-tuning derives its own.
        global_batch: samples an optimiser step.
        micro_batch: samples a rank at a time.
        data: the batches.
        validation: batches of the validations during training.
        preflight: what must hold before a run that begins from nothing is opened; raises RequestError.
        prepare: gives the fp32 model its first weights; of the experts those in the range.
        notice: a line to print before the first step; empty: none.
    """

    run: TrainingRun
    train: TrainSection
    global_batch: int
    micro_batch: int
    data: Data
    validation: Sequence[Batch]
    preflight: Callable[[], object]
    prepare: Callable[[torch.nn.Module, range], None]
    notice: str = ""


def run_job(recipe: Recipe, job: Job, stop: StopRequest) -> int:
    """Train to the end, or until a signal; returns the exit status."""
    about = _about(recipe, job)
    with _joined(recipe, job, about, stop) as (ranks, resumption):
        # What routers draw as noise: other numbers on each rank, and new ones after a resume on more ranks or fewer.
        # On as many, the checkpoint's own random states replace this.
        begin = resumption.found.step if resumption else 0
        torch.manual_seed((recipe.run.seed + begin) * ranks.size + ranks.rank)
        model = build_model(recipe.model, recipe.vocab_size)
        if resumption is None:
            job.prepare(
                model, local_experts(ranks.rank, recipe.model.backbone_section.expert_count, recipe.expert_parallel)
            )
        model.set_checkpointing(job.train.activation_checkpointing)
        if recipe.model.compile:
            model.compile_regions()
        experts = recipe.expert_parallel if recipe.model.has_experts else None
        config = deepspeed_config(job.train, ranks.size, experts, job.global_batch, job.micro_batch)
        rates = recipe.model.rate_scales
        optimizer = build_optimizer(model, job.train.optimizer, job.train.learning_rate, recipe.expert_parallel, rates)
        engine = build_engine(model, optimizer, config, ranks)
        adopt_partitions(optimizer, engine)
        balancer = Balancer(engine.module, job.train.router_bias_update_rate)
        start, skipped = 0, SkippedSteps(job.train.watch.skipped_in_a_row)
        if resumption:
            start = resumption.found.step
            state = resumption.load(engine, ranks)
            balancer.restore(state["balance"])
            skipped.restore(state["skipped"])
            if ranks.first:
                _tell_resumed(job, resumption)
        if job.notice and ranks.first:
            print(f"{job.run.stage}: {job.notice}", flush=True)
        try:
            ended = _loop(recipe, job, engine, balancer, skipped, about, ranks, stop, start)
        except RunError as error:
            if ranks.first:
                log(f"error: {error}")
            return command.FAILED
        if ended is Ended.DONE and ranks.first:
            _finish(job)
        if ended is Ended.LEFT and ranks.first:
            print(f"{job.run.stage}: simulated crash at step {job.train.simulate_crash_at}, nothing saved", flush=True)
        return {Ended.DONE: command.DONE, Ended.STOPPED: command.STOPPED, Ended.LEFT: command.FAILED}[ended]


def _about(recipe: Recipe, job: Job) -> About:
    counts = parameters(recipe.model, recipe.vocab_size)
    return About(
        identity=job.run.identity,
        inputs=job.run.inputs,
        model={**recipe.model.identity(), "vocab_size": recipe.vocab_size},
        topology={
            "ranks": recipe.ranks,
            "expert_parallel": recipe.expert_parallel,
            "zero_stage": job.train.zero_stage,
            "precision": job.train.precision,
        },
        run={
            "stage": job.run.stage,
            "steps": job.train.steps,
            "parameters": {"total": counts.total, "active": counts.active},
        },
    )


def _tell_resumed(job: Job, resumption: Resumption) -> None:
    found = resumption.found
    for line in found.passed_over:
        print(f"warning: {line}", flush=True)
    changes = f", {resumption.changes}" if resumption.changes else ""
    print(f"{job.run.stage}: resuming after step {found.step} from {found.folder}{changes}", flush=True)


def _loop(
    recipe: Recipe,
    job: Job,
    engine: Any,
    balancer: Balancer,
    skipped: SkippedSteps,
    about: About,
    ranks: Ranks,
    stop: StopRequest,
    start: int,
) -> Ended:
    train, folder = job.train, job.run.folder
    flops = flops_per_token(recipe.model, recipe.vocab_size, train.context_length, predicts=train.mtp_loss > 0)
    metrics = MetricsHook(folder, job.run.stage, start, train.steps, flops, train.log_every, ranks)
    objective = Objective(recipe.model, train)
    validation = ValidationHook(engine, objective, job.validation, train.eval_every, metrics, ranks)
    retention = Retention(train.keep, train.keep_every, train.keep_best)
    saver = Saver(partitions(engine), folder / "checkpoints", about, ranks, retention, start or None)

    def counts(step: int) -> dict[str, Any]:
        return {"samples": step * job.global_batch, "validation_loss": validation.loss_at(step)}

    def state() -> dict[str, Any]:
        return {"balance": balancer.state(), "skipped": skipped.state()}

    spikes = SpikeDetector(train.watch.spike_window, train.watch.spike_deviations)
    with (
        HangHook(job.run.stacks, train.watch.hang_seconds, ranks.rank) as hang,
        Prefetched(job.data, train.prefetch, train.steps, ranks.device) as data,
    ):
        trainer = Trainer(
            engine,
            data,
            objective,
            lambda step: learning_rate(step, train.steps, train.learning_rate, train.schedule),
            balancer,
            ranks,
            [
                validation,
                WatchHook(skipped, spikes, metrics, ranks.first),
                CheckpointHook(saver, train.save_every, start, counts, state),
                metrics,
                hang,
            ],
            stop,
            train.max_grad_norm if clips_itself(train) else None,
        )
        ended = trainer.run(start, train.steps, train.simulate_crash_at)
        if ended is Ended.LEFT:
            saver.drain()  # a checkpoint that was begun is no part of what a crash is rehearsed to lose
        return ended


def _finish(job: Job) -> None:
    """The run's manifest; its ``weights`` are what later stages are made from."""
    last = job.run.folder / "checkpoints" / folder_name(job.train.steps)
    job.run.finish(last)
    print(f"{job.run.stage}: finished, {job.train.steps} steps, weights in {last}", flush=True)


@contextmanager
def _joined(recipe: Recipe, job: Job, about: About, stop: StopRequest) -> Iterator[tuple[Ranks, Resumption | None]]:
    """Join the other ranks and listen to signals.

    Rank 0 takes the folder's lock, all find what to resume from, rank 0 opens the folder. What must be refused is
    refused before anything is moved aside, and by all ranks.
    """
    launch = recipe.launch
    ranks = join(launch.join_seconds, launch.probe_seconds, device=launch.device)
    stop.listen()
    with ExitStack() as stack:
        stack.callback(leave)
        if ranks.size != recipe.ranks:
            raise RequestError(
                f"{ranks.size} processes were started, the recipe says {recipe.ranks}: start them with "
                "`python -m launch`, or set launch.processes"
            )
        if job.train.precision == "fp16" and ranks.device.type == "cpu":
            raise RequestError("train.precision=fp16 needs GPUs, as DeepSpeed has none on CPU: set bf16 or fp32")
        _first_alone(ranks, lambda: stack.enter_context(lock.hold(job.run.folder)))
        found: Found | None = None
        if broadcast_value(ranks.first and job.run.begun()):
            found = newest_whole(job.run.folder / "checkpoints", ranks)
        resumption = Resumption(found, about) if found else None
        if found is None:
            _first_alone(ranks, job.preflight)
        _first_alone(ranks, lambda: job.run.open(dump_recipe(recipe), recipe.run.may_replace(job.run.stage)))
        yield ranks, resumption


def _first_alone(ranks: Ranks, action: Callable[[], object]) -> None:
    """Have rank 0 do something; what it must refuse, all ranks refuse."""
    refusal = ""
    if ranks.first:
        try:
            action()
        except RequestError as error:
            refusal = str(error)
    if refusal := broadcast_value(refusal):
        raise RequestError(refusal)
