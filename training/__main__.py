"""Model commands: ``python -m training VERB --recipe R [section.key=value ...]``.

Under a launcher a worker that ends on purpose but not done (stopped by a signal, asked for the impossible) leaves its
status in the file that ``MILLRACE_STATUS_FILE`` names and exits 0: torchrun would turn any status into 1, at length.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from configs import command
from configs.errors import RequestError
from training.engine.signals import StopRequest

VERBS = {
    "pretrain": "train the model on the token shards; resumes from the newest whole checkpoint",
    "finetune": "go on from the pretrained weights on chat examples; resumes likewise",
    "evaluate": "bits per byte against a bigram model and zstd -19, and the loss on held-out answers",
    "generate": "complete a prompt",
    "report": "one self-contained page with the curves and tables of the run",
    "inspect": "every tensor of the model with its shape, and how many parameters it has",
    "estimate": "parameters, FLOPs a token, memory a rank by part and what micro-batch fits, in closed form",
}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, purpose in VERBS.items():
        command.add_recipe_arguments(verbs.add_parser(verb, help=purpose, description=purpose))
    parsed = command.parse(parser, arguments)
    try:
        status, message = _run(parsed.verb, parsed), ""
    except RequestError as error:
        status, message = command.WRONG_REQUEST, str(error)
    file = os.environ.get("MILLRACE_STATUS_FILE")
    if file and status != command.DONE:
        Path(file).write_text(f"{status} {message}", encoding="utf-8")
        return command.DONE
    if message:
        print(f"error: {message}", file=sys.stderr)
    return status


def _run(verb: str, parsed: argparse.Namespace) -> int:
    """Import only what the verb needs: reports and estimates answer without torch."""
    if verb in ("pretrain", "finetune"):
        # Before torch is imported, which takes seconds in which a signal would kill.
        stop = StopRequest()
        recipe = command.read_recipe(parsed)
        if verb == "finetune":
            from training.finetune import finetune

            return finetune(recipe, stop)
        from training.pretrain import pretrain

        return pretrain(recipe, stop)
    recipe = command.read_recipe(parsed)
    if verb == "evaluate":
        from training.evaluate.command import evaluate

        return evaluate(recipe)
    if verb == "generate":
        from training.generate import generate

        return generate(recipe)
    if verb == "report":
        from training.report.command import report

        return report(recipe)
    if verb == "inspect":
        from training.inspect import inspect

        return inspect(recipe)
    from training.estimate.command import estimate

    return estimate(recipe)


if __name__ == "__main__":
    command.run(main)
