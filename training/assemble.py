"""What pretraining and fine-tuning do alike: an engine around a model, hooks, resuming, the loop, the manifest."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from artefacts import lock, manifest
from artefacts.training_run import TrainingRun
from configs import command
from configs.errors import RequestError
from configs.load import dump_recipe
from configs.schema import Recipe
from configs.schema.train import TrainSection
from training import losses
from training.checkpoint.load import Found, Resumption, newest_whole
from training.checkpoint.save import folder_name, save
from training.data.batch import Batch
from training.engine.balance import Balancer
from training.engine.build import build_engine
from training.engine.deepspeed_config import clips_itself, deepspeed_config
from training.engine.distributed import Ranks, broadcast_value, join, leave
from training.engine.hooks import CheckpointHook, ValidationHook
from training.engine.loop import Data, Trainer
from training.engine.metrics import MetricsHook
from training.engine.signals import StopRequest
from training.estimate.flops import flops_per_token
from training.estimate.parameters import parameters
from training.models.deepseek import DeepseekForCausalLM
from training.optimizers import build_optimizer
from training.schedules import learning_rate


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
        prepare: gives the fp32 model its first weights.
    """

    run: TrainingRun
    train: TrainSection
    global_batch: int
    micro_batch: int
    data: Data
    validation: Sequence[Batch]
    prepare: Callable[[DeepseekForCausalLM], None]


def lm_loss(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the cross-entropy over a batch's targets, and their number."""
    return losses.cross_entropy_sum(model(batch.inputs), batch.labels)


def run_job(recipe: Recipe, job: Job, stop: StopRequest) -> int:
    """Train to the end, or until a signal; returns the exit status."""
    # First of all, for what it refuses: nothing must have been moved aside by then.
    config = deepspeed_config(job.train, recipe.ranks, recipe.expert_parallel, job.global_batch, job.micro_batch)
    with _joined(recipe, job.run) as ranks:
        model = DeepseekForCausalLM(recipe.model, recipe.vocab_size)
        found = broadcast_value(newest_whole(job.run.folder / "checkpoints") if ranks.first else None)
        if found is None:
            job.prepare(model)
        model.set_checkpointing(job.train.checkpointing)
        optimizer = build_optimizer(model, job.train.optimizer, job.train.learning_rate, recipe.expert_parallel)
        topology: dict[str, int | str] = {
            "ranks": ranks.size,
            "expert_parallel": recipe.expert_parallel,
            "zero_stage": job.train.zero_stage,
            "precision": job.train.precision,
        }
        resumption = Resumption(found, topology) if found is not None else None
        engine = build_engine(model, optimizer, resumption.config(config) if resumption else config, ranks)
        start = resumption.load(engine, ranks) if resumption else 0
        if found and resumption and ranks.first:
            _tell_resumed(job, found, resumption)
        whole = _loop(recipe, job, engine, topology, ranks, stop, start)
        if whole and ranks.first:
            _finish(recipe, job, topology)
        return command.DONE if whole else command.STOPPED


def _tell_resumed(job: Job, found: Found, resumption: Resumption) -> None:
    for line in found.passed_over:
        print(f"warning: {line}", flush=True)
    converted = f", converted: {resumption.changes}" if resumption.changes else ""
    print(f"{job.run.stage}: resuming after step {found.step} from {found.folder}{converted}", flush=True)


def _loop(
    recipe: Recipe,
    job: Job,
    engine: Any,
    topology: dict[str, int | str],
    ranks: Ranks,
    stop: StopRequest,
    start: int,
) -> bool:
    train, folder = job.train, job.run.folder
    flops = flops_per_token(recipe.model, recipe.vocab_size, train.context_length)
    metrics = MetricsHook(folder, job.run.stage, start, train.steps, flops, train.log_every, ranks)

    def save_at(step: int) -> None:
        save(engine, folder / "checkpoints", step, job.run.key, topology, ranks, train.keep)

    trainer = Trainer(
        engine,
        job.data,
        lm_loss,
        lambda step: learning_rate(step, train.steps, train.learning_rate, train.schedule),
        Balancer(engine.module, train.balance_step),
        ranks,
        [
            ValidationHook(engine, lm_loss, job.validation, train.eval_every, metrics, ranks),
            CheckpointHook(save_at, train.save_every),
            metrics,
        ],
        stop,
        train.clip if clips_itself(train) else None,
    )
    return trainer.run(start, train.steps, train.stop_at)


def _finish(recipe: Recipe, job: Job, topology: dict[str, int | str]) -> None:
    """The run's manifest; ``weights`` is what later stages are made from."""
    last = job.run.folder / "checkpoints" / folder_name(job.train.steps)
    saved = manifest.require(last, f"make {job.run.stage}")
    counts = parameters(recipe.model, recipe.vocab_size)
    job.run.finish(
        counts={"steps": job.train.steps},
        versions=manifest.versions("torch", "deepspeed"),
        details={
            "checkpoint": last.name,
            "weights": saved.fingerprint,
            "topology": topology,
            "parameters": {"total": counts.total, "active": counts.active},
        },
    )
    print(f"{job.run.stage}: finished, {job.train.steps} steps, weights in {last}", flush=True)


@contextmanager
def _joined(recipe: Recipe, run: TrainingRun) -> Iterator[Ranks]:
    """Join the other ranks; rank 0 takes the folder's lock and opens it, or all ranks are told why not."""
    ranks = join()
    with ExitStack() as stack:
        stack.callback(leave)
        refusal = None
        if ranks.size != recipe.ranks:
            raise RequestError(
                f"{ranks.size} processes were started, the recipe says {recipe.ranks}: start them with "
                "`python -m launch`, or set launch.processes"
            )
        if ranks.first:
            try:
                stack.enter_context(lock.hold(run.folder))
                run.open(dump_recipe(recipe))
            except RequestError as error:
                refusal = str(error)
        refusal = broadcast_value(refusal)
        if refusal:
            raise RequestError(refusal)
        yield ranks
