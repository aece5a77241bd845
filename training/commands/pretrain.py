"""``python -m training pretrain``: trains on token shards, or on examples."""

from artefacts.manifest import require_sound
from artefacts.signals import StopRequest
from configs import command
from configs.run_layout import RunLayout
from configs.schema import Recipe
from tokenizer.registry import load_tokenizer
from training.data.build import held_out, pretraining_data
from training.inference.prompt_sampler import prompt_sampler
from training.job import Job, run_job
from training.model_loading import first_weights
from training.runs import BACKBONE, pretrain_run


def pretrain(recipe: Recipe, stop: StopRequest) -> int:
    """Start or resume pretraining, or report that it is finished. Returns the exit status."""
    layout, train = RunLayout.of(recipe), recipe.train
    run = pretrain_run(recipe, layout)
    if run.manifest() is not None:
        print(f"{run.folder}: up to date")
        return command.DONE
    data = pretraining_data(recipe, layout)
    validation = held_out(recipe, layout).spread(train.eval_batches * train.global_batch, recipe.micro_batch)
    notice = f"{train.steps} steps read {_epochs(data.epochs(train.steps))}"
    if not validation:
        notice += "; no validation, since the held-out text is too short: raise data.tokens.validation_fraction"
    inputs = [getattr(layout, name) for name in run.inputs if name != BACKBONE]
    job = Job(
        run=run,
        train=train,
        global_batch=train.global_batch,
        micro_batch=recipe.micro_batch,
        data=data,
        validation=lambda: validation,
        check_inputs=lambda: [require_sound(folder, "data") for folder in inputs],
        init_weights=lambda model, experts: first_weights(recipe, model, experts),
        notice=notice,
        keep_best=train.early_stopping is not None,
        sampler=prompt_sampler(recipe, load_tokenizer(layout.tokenizer)),
    )
    return run_job(recipe, job, stop)


def _epochs(epochs: dict[str, float]) -> str:
    return ", ".join(f"{count:.3g} epochs of {name}" for name, count in epochs.items())
