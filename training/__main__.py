"""Model commands: ``python -m training VERB --recipe R [section.key=value ...]``.

Under a launcher, a worker that stops because of a signal or an invalid request writes its exit status to a file
(:mod:`artefacts.worker_status`) and exits with status 0. torchrun would turn any other status into 1 and print a
traceback.
"""

import argparse
import logging
import sys
from collections.abc import Sequence

from artefacts.errors import RequestError, RunError
from artefacts.signals import StopRequest
from artefacts.training_folder import STAGES
from artefacts.worker_status import Worker
from configs import command
from configs.checks import unread_keys
from configs.load import load_recipe
from configs.schema import Recipe
from training.commands import arguments as options
from training.commands.out_of_memory import explain, ran_out

VERBS = {
    "pretrain": "train the model on the token shards; resumes from the newest complete checkpoint",
    "finetune": "train a fine-tuning stage on chat examples or on pairs of answers; resumes in the same way",
    "evaluate": "bits per byte compared with a bigram model and zstd -19, the loss on held-out answers and on texts of "
    "your own, and tasks of lm-evaluation-harness",
    "generate": "complete a prompt",
    "compare": "briefly train variants of the recipe's model that differ in one aspect, and write runs/NAME/compare; "
    "or show the evaluations of several runs",
    "export": "write the newest weights as a Hugging Face model directory, with adapters in peft's format, read them "
    "back and compare them",
    "import": "use the weights of a Hugging Face model directory as the recipe's finished pretraining",
    "report": "write one self-contained page with the run's curves and tables",
    "inspect": "print every tensor and module output with its shape, parameters and FLOPs; or compare recipes",
    "estimate": "compute parameters, FLOPs per token, memory per rank and the largest micro-batch that fits",
}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, purpose in VERBS.items():
        sub = verbs.add_parser(verb, help=purpose, description=purpose, allow_abbrev=False)
        options.add(verb, sub)
    parsed = command.parse(parser, arguments)
    options.validate(parser, parsed)
    if parsed.verb not in STAGES:
        try:
            return _run(parsed.verb, parsed)
        except (RuntimeError, MemoryError, OSError) as error:
            return _out_of_memory(error, parsed)
    worker = Worker()
    worker.keep_output()
    try:
        status, message = _train(parsed, worker), ""
    except RequestError as error:
        status, message = command.WRONG_REQUEST, str(error)
    except RunError as error:
        worker.note_failure()
        print(f"error: {error}", file=sys.stderr)
        return command.FAILED
    except Exception as error:
        worker.note_failure()
        return _out_of_memory(error, parsed)
    if status != command.DONE and worker.write_status(status, message):
        return command.DONE
    if message:
        print(f"error: {message}", file=sys.stderr)
    return status


def _train(parsed: argparse.Namespace, worker: Worker) -> int:
    stop = StopRequest(worker.report_listening)
    recipe = command.read_recipe(parsed)
    if not worker.is_launched:
        unread_keys.check(parsed.verb, recipe, parsed.overrides)
    # DeepSpeed imports this module, and every rank would warn if there is a CUDA compiler but no GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    if parsed.verb == "finetune":
        from training.commands.finetune import finetune

        return finetune(recipe, stop, parsed.stage)
    from training.commands.pretrain import pretrain

    return pretrain(recipe, stop)


def _out_of_memory(error: Exception, parsed: argparse.Namespace) -> int:
    """Report an out-of-memory error with advice on what to change. Re-raises any other error."""
    if not ran_out(error):
        raise error
    # The traceback's frames hold on to memory, and the explanation needs some too.
    error.__traceback__ = None
    running = " ".join(filter(None, (parsed.verb, getattr(parsed, "what", None))))
    stage = getattr(parsed, "stage", None)
    print(f"error: {explain(error, command.read_recipe(parsed), running, stage)}", file=sys.stderr)
    return command.FAILED


def _run(verb: str, parsed: argparse.Namespace) -> int:
    """Run a verb that needs no launcher. Imports are deferred, since reports and estimates need no torch."""
    if verb == "inspect" and parsed.compare:
        from training.estimate.comparison import compare as compare_recipes

        return compare_recipes([load_recipe(file, parsed.overrides) for file in parsed.compare])
    if verb == "compare" and parsed.what == "runs":
        from training.commands.compare_runs import compare_runs

        return compare_runs(parsed.runs)
    recipe = command.read_recipe(parsed)
    unread_keys.check((verb == "evaluate" and parsed.what) or verb, recipe, parsed.overrides)
    if verb == "evaluate":
        return _evaluate(recipe, parsed)
    if verb == "generate":
        from training.commands.generate import generate

        return generate(recipe, parsed.trace)
    if verb == "export":
        from training.commands.export import export

        return export(recipe)
    if verb == "import":
        from training.commands.import_model import import_model

        return import_model(recipe, parsed.source)
    if verb == "compare":
        from training.commands.compare import compare

        return compare(recipe, parsed.what, parsed.steps)
    if verb == "report":
        from training.commands.report import report

        return report(recipe)
    if verb == "inspect":
        from training.commands.inspect import inspect

        return inspect(recipe)
    from training.commands.estimate import estimate

    return estimate(recipe)


def _evaluate(recipe: Recipe, parsed: argparse.Namespace) -> int:
    if parsed.what == "attention":
        from training.commands.attention import evaluate_attention

        return evaluate_attention(recipe, parsed.text, parsed.target, parsed.layers)
    if parsed.what == "checkpoints":
        from training.commands.checkpoint_curve import evaluate_checkpoints

        return evaluate_checkpoints(recipe)
    if parsed.what == "temperature":
        from training.commands.temperature import evaluate_temperature

        return evaluate_temperature(recipe)
    from training.commands.evaluate import evaluate

    return evaluate(recipe)


if __name__ == "__main__":
    command.run(main)
