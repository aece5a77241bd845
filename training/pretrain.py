"""Pretraining: token shards to a checkpointed model."""

from artefacts.layout import RunLayout
from artefacts.manifest import require_sound
from artefacts.training_run import pretrain_run
from configs import command
from configs.schema import Recipe
from training.assemble import Job, run_job
from training.data.pretraining import PretrainingData, TokenWindows
from training.engine.signals import StopRequest
from training.models.deepseek import init_weights


def pretrain(recipe: Recipe, stop: StopRequest) -> int:
    """Begin, resume, or find that it is finished; returns the exit status."""
    layout, train = RunLayout.of(recipe), recipe.train
    run = pretrain_run(recipe, layout)
    if run.manifest() is not None:
        print(f"{run.folder}: up to date")
        return command.DONE
    windows = TokenWindows(layout.tokens, "train", train.context_length)
    held_out = TokenWindows(layout.tokens, "val", train.context_length)
    validation = held_out.spread(train.eval_batches * train.global_batch, recipe.micro_batch)
    job = Job(
        run=run,
        train=train,
        global_batch=train.global_batch,
        micro_batch=recipe.micro_batch,
        data=PretrainingData(windows, train.global_batch, recipe.run.seed),
        validation=validation,
        preflight=lambda: require_sound(layout.tokens, "make data"),
        prepare=lambda model: init_weights(model, recipe.run.seed),
    )
    return run_job(recipe, job, stop)
