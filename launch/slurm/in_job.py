"""The first node's role in a SLURM job: start the launcher on every node, then decide whether to requeue the job.

A job is requeued if it was interrupted and saved a checkpoint, or if it failed after making progress. It then resumes
on as many of its nodes as the recipe can use.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from types import FrameType

from artefacts import fingerprint, lock
from artefacts.errors import RequestError
from artefacts.training_folder import CHECKPOINTS, LATER_IN_CHAIN, read_identity, saved_steps
from configs import command
from configs.load import load_recipe
from configs.run_layout import RunLayout
from configs.schema import Recipe
from launch.logs import Output
from launch.plan import free_port
from launch.start import IN_ALLOCATION, launched, why_failed
from training.runs import next_run, stages_of

#: Stage -> fingerprint of the run in its folder, and the step of its newest checkpoint.
Progress = dict[str, tuple[str, int]]
#: Once a launcher has exited, the others have this many seconds, plus their grace period, to exit too.
_APART = 30
#: Overrides for the nodes. They reset keys that only matter for the submission.
_ON_NODES = ("launch.kind=slurm", "launch.slurm.train.min_nodes=null")


def run_in_allocation(recipe: Recipe, verb: str, recipe_path: str, overrides: list[str], dry_run: bool = False) -> int:
    """Run a command on the job's nodes, and requeue the job if it was interrupted or failed after making progress.

    Raises:
        RequestError: this is not a SLURM job, the recipe cannot use its nodes, or the run's folder cannot be used.
    """
    if "SLURM_JOB_ID" not in os.environ:
        raise RequestError("`launch allocation` runs inside a SLURM job: submit one with `launch slurm`")
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
    run = next_run(recipe, layout, verb)
    run.check_replacing(recipe.run.may_replace(run.stage))
    for line in run.restore():
        print(f"{run.label}: {line}", flush=True)
    if run.manifest() is not None:
        print(f"{run.folder}: up to date", flush=True)
        _end_array(verb)
        return command.DONE
    before = saved_progress(recipe, layout, verb)
    restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
    print(f"{verb}: job {os.environ['SLURM_JOB_ID']}, {restarts} restarts, on {', '.join(nodes[:count])}", flush=True)
    if nodes[count:]:
        print(
            f"{verb}: {', '.join(nodes[count:])} idle, since the recipe's batch cannot be spread over them", flush=True
        )
    with ExitStack() as stack:
        stack.enter_context(lock.hold(layout.launch(verb), launched(layout, verb)))
        output = Output(layout.logs / verb, apart=0)
        status, terminated = _run_srun(argv, {**os.environ, IN_ALLOCATION: ",".join(nodes[:count])})
    if status == command.WRONG_REQUEST:
        _end_array(verb)
        return status
    if status not in (command.DONE, command.STOPPED):
        if why := why_failed(recipe, output, nodes[:count], stage=next_run(recipe, layout, verb).name):
            _print_error(f"{verb}: {why}")
        status = command.FAILED
    if terminated:
        _print_error(f"{verb}: the job was terminated, so SLURM decides whether it is queued again")
        return status
    return _requeue(recipe, verb, status, has_progressed(before, saved_progress(recipe, layout, verb)))


def node_names() -> list[str]:
    """List the job's nodes. This node is the first."""
    argv = ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()


def usable_nodes(recipe_path: str, overrides: list[str], available: int) -> int:
    """Return the largest number of nodes, up to ``available``, on which the recipe can run.

    Raises:
        RequestError: the recipe cannot run on any number of nodes; the message says why it cannot run on all of them.
    """
    wrong: RequestError | None = None
    for count in range(available, 0, -1):
        try:
            load_recipe(recipe_path, [*overrides, *_ON_NODES, f"launch.nodes={count}"])
        except RequestError as error:
            wrong = wrong or error
        else:
            return count
    raise wrong or RequestError("the job has no nodes")


def srun(recipe: Recipe, verb: str, recipe_path: str, overrides: list[str], nodes: int, rendezvous: str) -> list[str]:
    """Return the command line that starts a launcher on each of ``nodes`` nodes."""
    train, cpus = recipe.launch.slurm.train, os.environ.get("SLURM_CPUS_PER_TASK")
    argv = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    # Since SLURM 22.05, steps do not inherit --cpus-per-task.
    argv += [f"--cpus-per-task={cpus}"] if cpus else []
    argv += [f"--wait={recipe.launch.grace_seconds + _APART}", "--kill-on-bad-exit=0", *train.srun_options]
    argv += [*train.container, train.python or sys.executable, "-m", "launch", "torchrun", verb]
    argv += ["--recipe", recipe_path, *overrides, *_ON_NODES]
    return [*argv, f"launch.nodes={nodes}", f"launch.rendezvous={rendezvous}"]


def saved_progress(recipe: Recipe, layout: RunLayout, verb: str) -> Progress:
    """Return, for each of a command's stages, the run in its folder and the step of its newest checkpoint."""
    folders = {stage: layout.training(stage) for stage in stages_of(recipe, verb)}
    return {
        stage: (fingerprint.of_value(read_identity(folder)), max(saved_steps(folder / CHECKPOINTS), default=0))
        for stage, folder in folders.items()
    }


def has_progressed(before: Progress, after: Progress) -> bool:
    """Return whether a stage has a later checkpoint. A run that replaced another one starts from step 0."""
    return any(step > (before[stage][1] if before[stage][0] == run else 0) for stage, (run, step) in after.items())


def _run_srun(argv: list[str], environment: dict[str, str]) -> tuple[int, bool]:
    """Run srun. Returns its exit status, and whether this process received SIGTERM.

    SLURM sends its signals to the launchers directly. Signals to this process are forwarded to srun. This process
    receives SIGTERM when the job is canceled, but not when SLURM or a user preempts or requeues the job.
    """
    terminated = False
    process = subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL)

    def pass_on(number: int, _frame: FrameType | None) -> None:
        nonlocal terminated
        terminated = terminated or number == signal.SIGTERM
        with suppress(ProcessLookupError):
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        return process.wait(), terminated
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _requeue(recipe: Recipe, verb: str, status: int, progressed: bool) -> int:
    """Requeue the job, or let the next job in its array run, if it was interrupted or failed after making progress.

    Returns the exit status.
    """
    job, train = os.environ["SLURM_JOB_ID"], recipe.launch.slurm.train
    continues = status == command.STOPPED or (status == command.FAILED and progressed)
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        if not continues:
            _end_array(verb)
        return status
    if not continues:
        if status == command.FAILED:
            _print_error(f"{verb}: it failed without progress, so the job is not queued again")
        return status
    if int(os.environ.get("SLURM_RESTART_COUNT", "0")) >= train.requeues:
        _print_error(
            f"{verb}: already queued again {train.requeues} times (launch.slurm.train.requeues): submit the job again"
        )
        return status
    _print_error(f"{verb}: the job goes back into the queue")
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    # The job is already pending if SLURM itself requeued it, as it does when it preempts a job.
    if done.returncode and "pending" not in done.stderr:
        _print_error(f"{verb}: {done.stderr.strip()}; submit the job again")
    return status


def _end_array(verb: str) -> None:
    """If this job belongs to a job array, cancel the array's pending jobs."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        _print_error(f"{verb}: the pending jobs of the array are canceled")
        subprocess.run(["scancel", "--state=PENDING", os.environ["SLURM_ARRAY_JOB_ID"]], check=False)


def _print_error(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
