"""Model commands: ``python -m training VERB --recipe R [section.key=value ...]``.

Under a launcher a worker that ends on purpose but not done (stopped by a signal, asked for the impossible) leaves its
status in a file (:mod:`artefacts.worker_status`) and exits 0: torchrun would turn any status into 1, at length.
"""

import argparse
import logging
import sys
from collections.abc import Sequence

from artefacts.errors import RequestError, RunError
from artefacts.signals import StopRequest
from artefacts.worker_status import Worker
from configs import command
from configs.checks import unread_keys
from configs.load import load_recipe
from configs.schema import Recipe
from training.commands import arguments as options
from training.commands.out_of_memory import ran_out, told

VERBS = {
    "pretrain": "train the model on the token shards; resumes from the newest whole checkpoint",
    "finetune": "go on from the pretrained weights on chat examples; resumes likewise",
    "evaluate": "bits per byte against a bigram model and zstd -19, and the loss on held-out answers",
    "generate": "complete a prompt",
    "compare": "the recipe's model in short trainings that differ in one thing, in runs/NAME/compare",
    "export": "the newest weights as a Hugging Face model directory, read back and compared",
    "import": "a Hugging Face model directory's weights as the finished pretraining of the recipe",
    "report": "one self-contained page with the curves and tables of the run",
    "inspect": "every tensor and module output with its shape, parameters and FLOPs by part; or recipes in one table",
    "estimate": "parameters, FLOPs a token, memory a rank by part and what micro-batch fits, in closed form",
}


#: Verbs that a launcher starts on every rank.
LAUNCHED = ("pretrain", "finetune")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, purpose in VERBS.items():
        sub = verbs.add_parser(verb, help=purpose, description=purpose, allow_abbrev=False)
        options.add(verb, sub)
    parsed = command.parse(parser, arguments)
    options.settle(parser, parsed)
    if parsed.verb not in LAUNCHED:
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
    # DeepSpeed imports it, and where there is a CUDA compiler and no GPU every rank would say so.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    if parsed.verb == "finetune":
        from training.commands.finetune import finetune

        return finetune(recipe, stop)
    from training.commands.pretrain import pretrain

    return pretrain(recipe, stop)


def _out_of_memory(error: Exception, parsed: argparse.Namespace) -> int:
    """Say what to change where memory ran out; raises any other error again."""
    if not ran_out(error):
        raise error
    # Frames that failed hold what they had, and what is said needs some room too.
    error.__traceback__ = None
    doing = " ".join(filter(None, (parsed.verb, getattr(parsed, "what", None))))
    print(f"error: {told(error, command.read_recipe(parsed), doing)}", file=sys.stderr)
    return command.FAILED


def _run(verb: str, parsed: argparse.Namespace) -> int:
    """Import only what the verb needs: reports, estimates and comparisons of recipes answer without torch."""
    if verb == "inspect" and parsed.compare:
        from training.estimate.comparison import compare as compare_recipes

        return compare_recipes([load_recipe(file, parsed.overrides) for file in parsed.compare])
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
    if parsed.what == "temperature":
        from training.commands.temperature import evaluate_temperature

        return evaluate_temperature(recipe)
    from training.commands.evaluate import evaluate

    return evaluate(recipe)


if __name__ == "__main__":
    command.run(main)
