"""Within a SLURM job, on its first node: start the launcher on every node, and afterwards decide on the job's future.

A job that was stopped with everything saved goes back into the queue; so does one that failed, if it has got further
than when it began. It goes on with as many of the nodes it is then given as the recipe can use.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from types import FrameType

from artefacts import lock
from artefacts.errors import RequestError
from artefacts.training_folder import LATER_IN_CHAIN, TrainingRun, checkpoints
from configs import command
from configs.load import load_recipe
from configs.run_layout import RunLayout
from configs.schema import Recipe
from launch.logs import Output
from launch.plan import free_port
from launch.start import COMMANDS, IN_ALLOCATION, launched, why_failed

#: Seconds after a node's launcher has ended in which the others must, beside their own grace.
_APART = 30
#: What was for the submission alone.
_ON_NODES = ("launch.kind=slurm", "launch.slurm.train.min_nodes=null")


def run_in_allocation(recipe: Recipe, verb: str, recipe_path: str, overrides: list[str], dry_run: bool = False) -> int:
    """Run a command on the job's nodes, and put the job back into the queue where that is called for.

    Raises:
        RequestError: this is no SLURM job, the recipe cannot use its nodes, or a node found the request wrong.
    """
    if "SLURM_JOB_ID" not in os.environ:
        raise RequestError("`launch allocation` is for within a SLURM job: submit one by `launch slurm`")
    try:
        return _run(recipe, verb, recipe_path, overrides, dry_run)
    except RequestError:
        _end_array(verb)
        raise


def _run(recipe: Recipe, verb: str, recipe_path: str, overrides: list[str], dry_run: bool) -> int:
    nodes = node_names()
    count = usable_nodes(recipe_path, overrides, len(nodes))
    argv = srun(recipe, verb, recipe_path, overrides, count, f"{socket.gethostname()}:{free_port()}")
    if dry_run:
        print(shlex.join(argv))
        return command.DONE
    layout = RunLayout.of(recipe)
    if os.environ.get("SLURM_ARRAY_TASK_ID", "1") != "1":
        os.environ[LATER_IN_CHAIN] = "1"
    run = COMMANDS[verb](recipe, layout)
    run.check_replacing(recipe.run.may_replace(run.stage))
    for line in run.restore():
        print(f"{verb}: {line}", flush=True)
    if run.manifest() is not None:
        print(f"{run.folder}: up to date", flush=True)
        _end_array(verb)
        return command.DONE
    before = newest_step(run)
    restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
    print(f"{verb}: job {os.environ['SLURM_JOB_ID']}, {restarts} restarts, on {', '.join(nodes[:count])}", flush=True)
    if nodes[count:]:
        print(f"{verb}: {', '.join(nodes[count:])} idle, as the recipe's batch cannot use them", flush=True)
    with ExitStack() as stack:
        stack.enter_context(lock.hold(layout.launch(verb), launched(layout, verb)))
        output = Output(layout.logs / verb, apart=0)
        status, told = _srun_through(argv, {**os.environ, IN_ALLOCATION: ",".join(nodes[:count])})
    if status == command.WRONG_REQUEST:
        _end_array(verb)
        return status
    if status not in (command.DONE, command.STOPPED):
        if why := why_failed(recipe, output, nodes[:count]):
            _say(f"{verb}: {why}")
        status = command.FAILED
    if told:
        _say(f"{verb}: the job was told to end, so whether it comes back is for SLURM to say")
        return status
    return _future(recipe, verb, status, newest_step(run) > before)


def node_names() -> list[str]:
    """The job's nodes; this one is the first."""
    argv = ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()


def usable_nodes(recipe_path: str, overrides: list[str], there: int) -> int:
    """The most of so many nodes that the recipe can be spread over.

    Raises:
        RequestError: it cannot be, on any number; with what is wrong on all of them.
    """
    wrong: RequestError | None = None
    for count in range(there, 0, -1):
        try:
            load_recipe(recipe_path, [*overrides, *_ON_NODES, f"launch.nodes={count}"])
        except RequestError as error:
            wrong = wrong or error
        else:
            return count
    raise wrong or RequestError("the job has no nodes")


def srun(recipe: Recipe, verb: str, recipe_path: str, overrides: list[str], nodes: int, rendezvous: str) -> list[str]:
    """The command line that starts a launcher on each of so many nodes."""
    train, cpus = recipe.launch.slurm.train, os.environ.get("SLURM_CPUS_PER_TASK")
    argv = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    # From SLURM 22.05 on a step does not inherit it.
    argv += [f"--cpus-per-task={cpus}"] if cpus else []
    argv += [f"--wait={recipe.launch.grace_seconds + _APART}", "--kill-on-bad-exit=0", *train.srun_options]
    argv += [*train.container, train.python or sys.executable, "-m", "launch", "torchrun", verb]
    argv += ["--recipe", recipe_path, *overrides, *_ON_NODES]
    return [*argv, f"launch.nodes={nodes}", f"launch.rendezvous={rendezvous}"]


def newest_step(run: TrainingRun) -> int:
    """The step of the newest checkpoint; 0: there is none."""
    return max((int(path.name[5:]) for path in checkpoints(run.folder)), default=0)


def _srun_through(argv: list[str], environment: dict[str, str]) -> tuple[int, bool]:
    """Run srun to its end; its exit status, and whether this process was told to end.

    SLURM signals the launchers itself, and what reaches this process goes to them too. SIGTERM does where a job is
    cancelled; where it is pre-empted or queued again from outside, the launchers alone are told.
    """
    told = False
    process = subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL)

    def pass_on(number: int, _frame: FrameType | None) -> None:
        nonlocal told
        told = told or number == signal.SIGTERM
        with suppress(ProcessLookupError):
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        return process.wait(), told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _future(recipe: Recipe, verb: str, status: int, further: bool) -> int:
    """Queue the job again, or the next of an array, or end them; returns the exit status."""
    job, train = os.environ["SLURM_JOB_ID"], recipe.launch.slurm.train
    goes_on = status == command.STOPPED or (status == command.FAILED and further)
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        if not goes_on:
            _end_array(verb)
        return status
    if not goes_on:
        if status == command.FAILED:
            _say(f"{verb}: it got no further than where it began, so the job is not queued again")
        return status
    if int(os.environ.get("SLURM_RESTART_COUNT", "0")) >= train.requeues:
        _say(f"{verb}: queued again {train.requeues} times already (launch.slurm.train.requeues): submit it once more")
        return status
    _say(f"{verb}: back into the queue")
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    # It is pending where SLURM itself has put it there, as it does with a job that it pre-empts.
    if done.returncode and "pending" not in done.stderr:
        _say(f"{verb}: {done.stderr.strip()}; submit it once more")
    return status


def _end_array(verb: str) -> None:
    """Take back the jobs of an array that are still to come; of a job that is in none, nothing."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        _say(f"{verb}: the jobs of the array that are still to come are taken back")
        subprocess.run(["scancel", "--state=PENDING", os.environ["SLURM_ARRAY_JOB_ID"]], check=False)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
