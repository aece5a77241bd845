"""Start a recipe's processes: ``python -m launch KIND COMMAND --recipe R [--dry-run] [section.key=value ...]``."""

import argparse
from collections.abc import Sequence

from artefacts import command_hints
from artefacts.training_folder import STAGES
from configs import command
from configs.checks import unread_keys
from configs.load import load_recipe
from launch.start import plan, start

KINDS = {
    "local": "this machine, launch.processes processes",
    "torchrun": "this node, one of several that find each other at launch.rendezvous",
    "deepspeed": "DeepSpeed's launcher: this machine, or the hosts of launch.hostfile",
    "slurm": "submit jobs to a SLURM cluster, with the settings in launch.slurm",
    "auto": "the launcher set in launch.kind",
    "allocation": "used inside a SLURM job: starts all nodes, and requeues the job when it is interrupted",
    "demo": "the complete recipe, end to end, with a simulated crash and a resume",
}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m launch", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind, purpose in KINDS.items():
        sub = kinds.add_parser(kind, help=purpose, description=purpose, allow_abbrev=False)
        if kind != "demo":
            verbs = [*STAGES, *(["data"] if kind == "slurm" else [])]
            sub.add_argument("verb", choices=verbs, metavar="COMMAND", help=" or ".join(verbs))
            sub.add_argument("--dry-run", action="store_true", help="print what would be started, without starting it")
        command.add_recipe_arguments(sub)
    parsed = command.parse(parser, arguments)
    if parsed.kind == "demo":
        from launch.demo import demo

        recipe = command.read_recipe(parsed)
        unread_keys.check("demo", recipe, parsed.overrides)
        return demo(recipe, parsed.recipe, parsed.overrides)
    return _dispatch(parsed.kind, parsed.verb, parsed.recipe, parsed.overrides, parsed.dry_run)


def _dispatch(kind: str, verb: str, recipe_path: str, overrides: list[str], dry_run: bool) -> int:
    with_kind = [*overrides]
    if kind != "auto":
        with_kind.append(f"launch.kind={'slurm' if kind == 'allocation' else kind}")
    recipe = load_recipe(recipe_path, with_kind)
    unread_keys.check(verb, recipe, overrides)
    if kind == "slurm" and recipe.launch.nodes > 1:
        # Other kinds need a rendezvous or a hostfile for several nodes, also in commands that start no processes.
        command_hints.add_override("launch.kind=slurm")
    if kind == "allocation":
        from launch.slurm.in_job import run_in_allocation

        return run_in_allocation(recipe, verb, recipe_path, overrides, dry_run)
    if verb == "data":
        from launch.slurm.data_jobs import submit

        return submit(recipe, recipe_path, overrides, dry_run)
    if recipe.launch.kind == "slurm":
        from launch.slurm.training_job import submit_training

        return submit_training(recipe, verb, recipe_path, overrides, dry_run)
    if dry_run:
        print(plan(recipe, verb, recipe_path, with_kind).as_shell())
        return command.DONE
    return start(recipe, verb, recipe_path, with_kind)


if __name__ == "__main__":
    command.run(main, restartable=True)
