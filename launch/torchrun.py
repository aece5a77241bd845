"""The torchrun command line and the environment of a recipe's workers."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from configs.schema import Recipe

#: SIGUSR1 is what SLURM is asked to send before the time is up; torchrun would die of it untold.
SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"

#: Seconds that torchrun gives its workers after a signal where it cannot be told.
_GRACE_OF_TORCHRUN = 30


def torchrun_command(recipe: Recipe, verb: str, recipe_path: str, overrides: list[str]) -> list[str]:
    """Argv that starts this node's workers; they meet on a free port of this host, or where launch.rendezvous says."""
    launch = recipe.launch
    argv = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={launch.processes}"]
    if launch.nodes == 1 and not launch.rendezvous:
        argv += ["--standalone"]
    else:
        argv += [
            f"--nnodes={launch.nodes}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={launch.rendezvous}",
            f"--rdzv-id={recipe.run.name}",
        ]
    argv += [
        "--max-restarts=0",
        f"--signals-to-handle={SIGNALS}",
        *_shutdown_timeout(launch.grace_seconds),
        "-m",
        "training",
        verb,
        "--recipe",
        recipe_path,
        *overrides,
    ]
    return argv


def _shutdown_timeout(seconds: int) -> list[str]:
    if _knows("--shutdown-timeout"):
        return [f"--shutdown-timeout={seconds}"]
    if seconds > _GRACE_OF_TORCHRUN:
        print(
            f"this torchrun has no --shutdown-timeout: {_GRACE_OF_TORCHRUN} s after a signal workers are killed, "
            f"whatever launch.grace_seconds ({seconds}) says; a newer torch has it",
            file=sys.stderr,
        )
    return []


def _knows(option: str) -> bool:
    """Whether the installed torchrun has an option; asked of its source, since importing torch takes seconds."""
    found = find_spec("torch")
    sources = (Path(folder, "distributed/run.py") for folder in (found and found.submodule_search_locations) or [])
    return any(option in source.read_text(encoding="utf-8") for source in sources if source.is_file())


def worker_environment(recipe: Recipe) -> dict[str, str]:
    """Variables of the workers that differ from the caller's or are made sure of; what the recipe says comes first."""
    checkout = Path(__file__).resolve().parents[1]
    launch, caller = recipe.launch, os.environ
    cores = str(max(1, (os.cpu_count() or 1) // launch.processes))
    searched = [str(checkout), *filter(None, caller.get("PYTHONPATH", "").split(os.pathsep))]
    variables = {
        "OMP_NUM_THREADS": str(launch.threads) if launch.threads else caller.get("OMP_NUM_THREADS", cores),
        "TORCH_EXTENSIONS_DIR": caller.get("TORCH_EXTENSIONS_DIR", str(checkout / ".cache" / "torch_extensions")),
        # Large blocks are kept and not given back: on CPU a step otherwise spends a tenth of its time in page faults.
        "MALLOC_TRIM_THRESHOLD_": str(2**32),
        "MALLOC_MMAP_MAX_": "0",
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(searched)),
    }
    if launch.device != "auto":
        variables["DS_ACCELERATOR"] = launch.device
    return variables
