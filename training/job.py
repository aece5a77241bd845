"""What pretraining and fine-tuning share: join the ranks, build the engine, resume, train, write the manifest."""

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
from training.checkpoint.load import CheckpointRef, Resumption, newest_complete
from training.checkpoint.retention import Retention
from training.checkpoint.save import RunIdentity, Saver
from training.data.batch import Batch, Data
from training.data.prefetch import Prefetched
from training.distributed.join import join
from training.distributed.ranks import Ranks, broadcast_value, destroy_process_group
from training.engine.build import build_engine
from training.engine.deepspeed_config import deepspeed_config
from training.engine.expert_parallel import local_experts
from training.engine.partitions import partitions
from training.estimate.flops import flops_per_token
from training.estimate.parameters import parameters
from training.models.registry import build_model
from training.objective import Objective
from training.optim.build import bind_partitions, build_optimizer
from training.trainer.callbacks.build import build_callbacks
from training.trainer.context import TrainingContext
from training.trainer.load_balancer import Balancer
from training.trainer.trainer import Ended, Trainer


@dataclass(frozen=True)
class Job:
    """One training run, ready to start on any number of ranks.

    Attributes:
        run: its folder and identity.
        train: the train section that it follows; fine-tuning derives its own.
        global_batch: samples per optimizer step.
        micro_batch: samples per rank and forward pass.
        data: the micro-batches.
        validation: the batches of the validation loss during training.
        check_inputs: called before a new run is opened; raises RequestError if its inputs are damaged.
        init_weights: gives the fp32 model its first weights; of the routed experts only those in the range.
        notice: a line to print before the first step, or empty.
    """

    run: TrainingRun
    train: TrainSection
    global_batch: int
    micro_batch: int
    data: Data
    validation: Sequence[Batch]
    check_inputs: Callable[[], object]
    init_weights: Callable[[torch.nn.Module, range], None]
    notice: str = ""


def run_job(recipe: Recipe, job: Job, stop: StopRequest) -> int:
    """Train to the last step or until a signal; returns the exit status.

    Raises:
        RequestError: the run cannot start as it was requested.
    """
    identity = _identity(recipe, job)
    with _join_ranks(recipe, job, identity, stop) as (ranks, resumption):
        model = _build_model(recipe, job, ranks, resumption)
        engine = _build_engine(recipe, job, model, ranks)
        with Prefetched(job.data, job.train.prefetch, job.train.steps, ranks.device) as data:
            context = _build_context(recipe, job, identity, ranks, engine, data, resumption, stop)
            _print_start(job, ranks, resumption)
            return _train(context)


@contextmanager
def _join_ranks(
    recipe: Recipe, job: Job, identity: RunIdentity, stop: StopRequest
) -> Iterator[tuple[Ranks, Resumption | None]]:
    """Join the process group, listen to signals, lock and open the run's folder.

    Every rank gets the checkpoint to resume from, or None for a new run. A request that cannot be met is refused by all
    ranks, before anything is moved aside.
    """
    launch = recipe.launch
    ranks = join(launch.join_seconds, launch.probe_seconds, device=launch.device)
    stop.listen()
    with ExitStack() as stack:
        stack.callback(destroy_process_group)
        _check_ranks(recipe, job, ranks)
        _on_first_rank(ranks, lambda: stack.enter_context(lock.hold(job.run.folder)))
        checkpoint: CheckpointRef | None = None
        if broadcast_value(ranks.first and job.run.begun()):
            checkpoint = newest_complete(job.run.folder / "checkpoints", ranks)
        resumption = Resumption(checkpoint, identity) if checkpoint else None
        if resumption is None:
            _on_first_rank(ranks, job.check_inputs)
        _on_first_rank(ranks, lambda: job.run.open(dump_recipe(recipe), recipe.run.may_replace(job.run.stage)))
        yield ranks, resumption


def _check_ranks(recipe: Recipe, job: Job, ranks: Ranks) -> None:
    if ranks.size != recipe.ranks:
        raise RequestError(
            f"{ranks.size} processes were started, but the recipe needs {recipe.ranks}: start them with "
            "`python -m launch`, or set launch.processes"
        )
    if job.train.precision == "fp16" and ranks.device.type == "cpu":
        raise RequestError("train.precision=fp16 needs GPUs, since DeepSpeed has no fp16 on CPU: set bf16 or fp32")


def _on_first_rank(ranks: Ranks, action: Callable[[], object]) -> None:
    """Run an action on rank 0; a ``RequestError`` that it raises is raised on all ranks."""
    refusal = ""
    if ranks.first:
        try:
            action()
        except RequestError as error:
            refusal = str(error)
    if refusal := broadcast_value(refusal):
        raise RequestError(refusal)


def _build_model(recipe: Recipe, job: Job, ranks: Ranks, resumption: Resumption | None) -> Any:
    """The model in fp32 on CPU; of a new run with its first weights."""
    # Routers draw their noise from this generator: different numbers on every rank, and new ones after a resume on
    # another number of ranks. On the same number of ranks the checkpoint's random states replace it.
    start = resumption.checkpoint.step if resumption else 0
    torch.manual_seed((recipe.run.seed + start) * ranks.size + ranks.rank)
    model = build_model(recipe.model, recipe.vocab_size)
    if resumption is None:
        experts = recipe.model.backbone_section.expert_count
        job.init_weights(model, local_experts(ranks.rank, experts, recipe.expert_parallel))
    model.set_checkpointing(job.train.activation_checkpointing)
    if recipe.model.compile:
        model.compile_regions()
    return model


def _build_engine(recipe: Recipe, job: Job, model: Any, ranks: Ranks) -> Any:
    """The DeepSpeed engine around the model, with the recipe's optimizer."""
    train = job.train
    expert_parallel = recipe.expert_parallel if recipe.model.has_experts else None
    config = deepspeed_config(train, ranks.size, expert_parallel, job.global_batch, job.micro_batch)
    optimizer = build_optimizer(
        model, train.optimizer, train.learning_rate, recipe.expert_parallel, recipe.model.rate_scales
    )
    engine = build_engine(model, optimizer, config, ranks)
    bind_partitions(optimizer, engine)
    return engine


def _build_context(
    recipe: Recipe,
    job: Job,
    identity: RunIdentity,
    ranks: Ranks,
    engine: Any,
    data: Data,
    resumption: Resumption | None,
    stop: StopRequest,
) -> TrainingContext:
    """Restore the engine if the run resumes, and collect what the trainer and its callbacks read."""
    train = job.train
    balancer = Balancer(engine.module, train.router_bias_update_rate)
    restored: dict[str, Any] = {}
    if resumption:
        restored = resumption.load(engine, ranks)
        balancer.load_state_dict(restored["balance"])
    start = resumption.checkpoint.step if resumption else 0
    retention = Retention(train.keep, train.keep_every, train.keep_best)
    return TrainingContext(
        run=job.run,
        train=train,
        ranks=ranks,
        engine=engine,
        objective=Objective(recipe.model, train),
        data=data,
        validation=job.validation,
        balancer=balancer,
        saver=Saver(partitions(engine), job.run.folder / "checkpoints", identity, ranks, retention, start or None),
        stop=stop,
        global_batch=job.global_batch,
        flops_per_token=flops_per_token(
            recipe.model, recipe.vocab_size, train.context_length, predicts=train.mtp_loss > 0
        ),
        start_step=start,
        restored=restored,
    )


def _print_start(job: Job, ranks: Ranks, resumption: Resumption | None) -> None:
    if not ranks.first:
        return
    if resumption:
        checkpoint = resumption.checkpoint
        for line in checkpoint.skipped:
            print(f"warning: {line}", flush=True)
        changes = f", {resumption.changes}" if resumption.changes else ""
        print(f"{job.run.stage}: resuming after step {checkpoint.step} from {checkpoint.folder}{changes}", flush=True)
    if job.notice:
        print(f"{job.run.stage}: {job.notice}", flush=True)


def _train(context: TrainingContext) -> int:
    """Train, finish the run's folder, and report; returns the exit status."""
    run, train, first = context.run, context.train, context.ranks.first
    try:
        ended = Trainer(context, build_callbacks(context)).run()
    except RunError as error:
        if first:
            log(f"error: {error}")
        return command.FAILED
    if ended is Ended.STOPPED:
        return command.STOPPED
    if ended is Ended.ABORTED:
        # A checkpoint that was begun is not part of what the simulated crash loses.
        context.saver.drain()
        if first:
            print(f"{run.stage}: simulated crash at step {train.simulate_crash_at}, nothing saved", flush=True)
        return command.FAILED
    if first:
        checkpoint = run.folder / "checkpoints" / folder_name(train.steps)
        run.finish(checkpoint)
        print(f"{run.stage}: finished, {train.steps} steps, weights in {checkpoint}", flush=True)
    return command.DONE


def _identity(recipe: Recipe, job: Job) -> RunIdentity:
    counts = parameters(recipe.model, recipe.vocab_size)
    return RunIdentity(
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
