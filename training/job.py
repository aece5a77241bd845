"""The training job, which pretraining and fine-tuning share.

A job joins the process group, builds the engine, resumes from a checkpoint if there is one, trains, and writes the
run's manifest.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from artefacts import lock
from artefacts.errors import RequestError, RunError
from artefacts.progress import log
from artefacts.signals import StopRequest
from artefacts.training_folder import CHECKPOINTS, KEEP_BEST, TrainingRun, checkpoint_name
from configs import command
from configs.load import dump_recipe
from configs.schema import Recipe
from configs.schema.train import TrainSection
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
from training.optim.trained_part import EVERYTHING, TrainedPart
from training.trainer.callbacks.build import build_callbacks
from training.trainer.callbacks.wandb import check_wandb
from training.trainer.context import Objective as ObjectiveProtocol
from training.trainer.context import Sampler, TrainingContext
from training.trainer.load_balancer import Balancer
from training.trainer.trainer import Ended, Trainer


class Preparation(Protocol):
    """Something that a job computes with its start weights before the first step, and keeps in the run's folder."""

    def is_missing(self) -> bool:
        """Return whether it must be computed, because the run is new or the kept files are damaged. Rank 0 only."""
        ...

    def compute(self, engine: Any, ranks: Ranks) -> None:
        """Compute it with an engine that holds the start weights, and keep it. Collective."""
        ...

    def install(self, ranks: Ranks) -> None:
        """Add what was kept to the job's data. Collective."""
        ...


@dataclass(frozen=True)
class Job:
    """One training run, ready to start on any number of ranks.

    Attributes:
        run: the run's folder and identity.
        train: the train section to use; fine-tuning derives its own.
        global_batch: samples per optimizer step.
        micro_batch: samples per rank and forward pass.
        data: the micro-batches of every step.
        validation: returns the batches for the validation loss during training, once ``preparation`` is installed.
        check_inputs: called before a new run is opened; raises RequestError if the run's inputs are damaged.
        init_weights: initializes the fp32 model's weights, including only the routed experts in the given range.
        trained: the part of the model to train.
        notice: a line to print before the first step; may be empty.
        keep_best: whether later steps use the checkpoint with the lowest validation loss, rather than the last one.
        sampler: completes ``train.samples``; None if the recipe has none.
        objective: the losses to minimize. Defaults to the language model's.
        preparation: computed from the start weights, even if the run resumes and has lost it.
        earlier_validation: batches of pretraining's validation text, to measure what fine-tuning forgets.
        chat_template: the Jinja program of the template that the examples were rendered with. It is recorded in the
            checkpoints, because a conversation with the model needs the same template. Empty in pretraining.
    """

    run: TrainingRun
    train: TrainSection
    global_batch: int
    micro_batch: int
    data: Data
    validation: Callable[[], Sequence[Batch]]
    check_inputs: Callable[[], object]
    init_weights: Callable[[torch.nn.Module, range], None]
    trained: TrainedPart = EVERYTHING
    notice: str = ""
    keep_best: bool = False
    sampler: Sampler | None = None
    objective: ObjectiveProtocol | None = None
    preparation: Preparation | None = None
    earlier_validation: Sequence[Batch] = ()
    chat_template: str = ""


@dataclass(frozen=True)
class _Start:
    """A job that is about to start: all ranks have joined, and the run's folder is open.

    Attributes:
        recipe: the run's recipe.
        job: the job to run.
        identity: the facts about the run that are recorded in checkpoints.
        ranks: this process's position among all ranks.
        resumption: restores the newest checkpoint; None for a new run.
        prepares: whether the job's preparation must be computed.
    """

    recipe: Recipe
    job: Job
    identity: RunIdentity
    ranks: Ranks
    resumption: Resumption | None
    prepares: bool

    @property
    def step(self) -> int:
        """Number of optimizer steps already done."""
        return self.resumption.checkpoint.step if self.resumption else 0

    @property
    def needs_weights(self) -> bool:
        """Whether the model must hold the start weights before a checkpoint is loaded."""
        return self.resumption is None or self.prepares


def run_job(recipe: Recipe, job: Job, stop: StopRequest) -> int:
    """Train until the last step or a signal. Returns the exit status.

    Raises:
        RequestError: the run cannot start as requested.
    """
    with _joined(recipe, job, stop) as start:
        engine = _build_engine(start, _build_model(start))
        _prepare(start, engine)
        with Prefetched(job.data, job.train.prefetch, job.train.steps, start.ranks.device) as data:
            context = _build_context(start, engine, data, stop)
            _print_start(start)
            return _train(context)


@contextmanager
def _joined(recipe: Recipe, job: Job, stop: StopRequest) -> Iterator[_Start]:
    """Join the process group, listen for signals, and lock and open the run's folder.

    If the run cannot start as requested, all ranks raise ``RequestError`` before an existing folder is moved aside.
    """
    launch, identity = recipe.launch, _identity(recipe, job)
    ranks = join(launch.join_seconds, launch.probe_seconds, device=launch.device)
    stop.listen()
    with ExitStack() as stack:
        stack.callback(destroy_process_group)
        _check_ranks(recipe, job, ranks)
        _on_first_rank(ranks, lambda: check_wandb(job.train.wandb))
        _on_first_rank(ranks, lambda: stack.enter_context(lock.hold(job.run.folder)))
        checkpoint: CheckpointRef | None = None
        if broadcast_value(ranks.first and job.run.begun()):
            checkpoint = newest_complete(job.run.folder / CHECKPOINTS, ranks)
        resumption = Resumption(checkpoint, identity) if checkpoint else None
        if resumption is None:
            _on_first_rank(ranks, job.check_inputs)
        _on_first_rank(ranks, lambda: job.run.open(dump_recipe(recipe), recipe.run.may_replace(job.run.stage)))
        preparation = job.preparation
        prepares = broadcast_value(ranks.first and preparation is not None and preparation.is_missing())
        if prepares and resumption is not None:
            _on_first_rank(ranks, job.check_inputs)
        yield _Start(recipe, job, identity, ranks, resumption, prepares)


def _check_ranks(recipe: Recipe, job: Job, ranks: Ranks) -> None:
    if ranks.size != recipe.ranks:
        raise RequestError(
            f"{ranks.size} processes were started, but the recipe needs {recipe.ranks}: start them with "
            "`python -m launch`, or set launch.processes"
        )
    if job.train.precision == "fp16" and ranks.device.type == "cpu":
        raise RequestError("train.precision=fp16 needs GPUs, since DeepSpeed has no fp16 on CPU: set bf16 or fp32")


def _on_first_rank(ranks: Ranks, action: Callable[[], object]) -> None:
    """Run an action on rank 0. If it raises ``RequestError``, all ranks raise it."""
    refusal = ""
    if ranks.first:
        try:
            action()
        except RequestError as error:
            refusal = str(error)
    if refusal := broadcast_value(refusal):
        raise RequestError(refusal)


def _build_model(start: _Start) -> Any:
    """Build the model in fp32 on CPU, and initialize its weights if they are needed."""
    recipe, job, ranks = start.recipe, start.job, start.ranks
    # Routers draw their noise from this generator, which is seeded differently on each rank. If the run resumes with a
    # different number of ranks, it starts from a new seed; otherwise the checkpoint's RNG states replace it.
    torch.manual_seed((recipe.run.seed + start.step) * ranks.size + ranks.rank)
    model = build_model(recipe.model, recipe.vocab_size)
    if start.needs_weights:
        experts = recipe.model.backbone_section.expert_count
        job.init_weights(model, local_experts(ranks.rank, experts, recipe.expert_parallel))
    job.trained.prepare(model, recipe.run.seed, new=start.needs_weights)
    model.set_activation_checkpointing(job.train.activation_checkpointing)
    if recipe.model.compile:
        model.compile_regions()
    return model


def _build_engine(start: _Start, model: Any) -> Any:
    """Build the DeepSpeed engine around the model, with the recipe's optimizer."""
    recipe, job, train = start.recipe, start.job, start.job.train
    expert_parallel = recipe.expert_parallel if recipe.model.has_experts else None
    config = deepspeed_config(train, start.ranks.size, expert_parallel, job.global_batch, job.micro_batch)
    scales = {**job.trained.rate_scales, **recipe.model.rate_scales}
    optimizer = build_optimizer(model, train.optimizer, train.learning_rate, recipe.expert_parallel, scales)
    engine = build_engine(model, optimizer, config, start.ranks)
    bind_partitions(optimizer, engine)
    return engine


def _prepare(start: _Start, engine: Any) -> None:
    """Compute the job's preparation if it is missing, and install it. The engine must not be restored yet."""
    preparation = start.job.preparation
    if preparation is None:
        return
    if start.prepares:
        preparation.compute(engine, start.ranks)
    preparation.install(start.ranks)


def _build_context(start: _Start, engine: Any, data: Data, stop: StopRequest) -> TrainingContext:
    """Restore the engine if the run resumes, and build the context for the trainer and its callbacks."""
    recipe, job, train, ranks = start.recipe, start.job, start.job.train, start.ranks
    balancer = Balancer(engine.module, train.router_bias_update_rate)
    restored: dict[str, Any] = {}
    if start.resumption:
        restored = start.resumption.load(engine, ranks)
        balancer.load_state_dict(restored["balance"])
    stage = recipe.stage(job.run.name) if job.run.stage == "finetune" else None
    flops = flops_per_token(recipe.model, recipe.vocab_size, train.context_length, train.mtp_loss > 0, stage)
    retention = Retention(train.keep, train.keep_every, max(train.keep_best, int(job.keep_best)))
    folder = job.run.folder / CHECKPOINTS
    return TrainingContext(
        run=job.run,
        train=train,
        ranks=ranks,
        engine=engine,
        objective=job.objective or Objective(recipe.model, train),
        data=data,
        validation=job.validation(),
        earlier_validation=job.earlier_validation,
        earlier_objective=Objective(recipe.model, recipe.train),
        balancer=balancer,
        saver=Saver(partitions(engine), folder, start.identity, ranks, retention, start.step or None),
        stop=stop,
        global_batch=job.global_batch,
        flops_per_token=flops,
        start_step=start.step,
        restored=restored,
        keep_best=job.keep_best,
        sampler=job.sampler,
    )


def _print_start(start: _Start) -> None:
    if not start.ranks.first:
        return
    stage, notice = start.job.run.label, start.job.notice
    if start.resumption:
        checkpoint, changes = start.resumption.checkpoint, start.resumption.changes
        for line in checkpoint.skipped:
            print(f"warning: {line}", flush=True)
        changed = f", {changes}" if changes else ""
        print(f"{stage}: resuming after step {checkpoint.step} from {checkpoint.folder}{changed}", flush=True)
    if notice:
        print(f"{stage}: {notice}", flush=True)


def _train(context: TrainingContext) -> int:
    """Train, write the finished run's manifest, and print the result. Returns the exit status."""
    run, train, first = context.run, context.train, context.ranks.first
    try:
        trainer = Trainer(context, build_callbacks(context))
        ended = trainer.run()
    except RunError as error:
        if first:
            log(f"error: {error}")
        return command.FAILED
    if ended is Ended.STOPPED:
        return command.STOPPED
    if ended is Ended.ABORTED:
        # Finish a pending checkpoint: a simulated crash must not lose it.
        context.saver.drain()
        if first:
            print(f"{run.label}: simulated crash at step {train.simulate_crash_at}, nothing saved", flush=True)
        return command.FAILED
    if first:
        checkpoints = run.folder / CHECKPOINTS
        final = run.finish(checkpoints / checkpoint_name(trainer.step))
        weights = checkpoints / final.details["checkpoint"]
        why = "" if weights.name == checkpoint_name(trainer.step) else " (lowest validation loss)"
        print(f"{run.label}: finished, {trainer.step} steps, weights in {weights}{why}", flush=True)
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
            "name": job.run.name,
            "steps": job.train.steps,
            "parameters": {"total": counts.total, "active": counts.active},
            **({"chat_template": job.chat_template} if job.chat_template else {}),
            **({KEEP_BEST: True} if job.keep_best else {}),
            # Readers of the weights need it to merge the adapters.
            **({"lora": job.trained.lora.identity()} if job.trained.lora else {}),
        },
    )
