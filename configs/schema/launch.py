"""How a run's processes are started. None of these keys changes what the model learns."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from configs.schema.base import NonIdentity, OptionalPath, Section

_TIME: dict[str, Any] = {"pattern": r"^(\d+-\d{1,2}|\d+):[0-5]\d:[0-5]\d$", "examples": ["24:00:00", "2-12:00:00"]}
_MEMORY: dict[str, Any] = {"pattern": r"^\d+[KMGT]?$", "examples": ["8G"]}


class SlurmTrainSection(Section):
    """Settings for SLURM jobs that pretrain or fine-tune. These keys override or extend the keys of `launch.slurm`.

    Each job runs on `launch.nodes` nodes.
    """

    headings: ClassVar[dict[str, str]] = {
        "partition": "Resources",
        "signal_seconds": "Stopping and restarting",
        "python": "Environment on the nodes",
    }

    partition: NonIdentity[str | None] = Field(None, description="Partition. Defaults to `launch.slurm.partition`.")
    time: NonIdentity[str | None] = Field(
        None, **_TIME, description="Time limit of a job. Defaults to `launch.slurm.time`."
    )
    min_nodes: NonIdentity[int | None] = Field(
        None, ge=1, description="Start with as few as this many nodes if not all of `launch.nodes` are free."
    )
    gpus: NonIdentity[int | None] = Field(
        None, ge=0, description="GPUs per node. Defaults to `launch.processes`, or to 0 with `launch.device: cpu`."
    )
    cpus: NonIdentity[int | None] = Field(
        None, ge=1, description="CPUs per node. Defaults to the partition's default, which is often a single core."
    )
    memory: NonIdentity[str | None] = Field(
        None, **_MEMORY, description="Memory per node. 0 requests all of it. Defaults to the partition's default."
    )
    signal_seconds: NonIdentity[int] = Field(
        180, ge=30, description="How many seconds before the time limit the job receives the signal to save and stop."
    )
    requeues: NonIdentity[int] = Field(1000, ge=0, description="Maximum number of times that a job is requeued.")
    chain: NonIdentity[int] = Field(
        0,
        ge=0,
        description="Submit an array of this many jobs that run one after another, instead of requeuing a single job. "
        "0 disables this.",
    )
    python: NonIdentity[str | None] = Field(
        None, description="Python interpreter on the nodes. Defaults to the interpreter that submits the job."
    )
    container: NonIdentity[tuple[str, ...]] = Field(
        (), description="Command prefix on each node, such as `[apptainer, exec, --nv, image.sif]`."
    )
    srun_options: NonIdentity[tuple[str, ...]] = Field(
        (), description="Other options for srun, such as `[--container-image=image.sqsh]`."
    )
    wheelhouse: NonIdentity[OptionalPath] = Field(
        None,
        description="Folder created by `make wheelhouse`. Before training starts, each node installs the packages from "
        "this folder on its own disk.",
    )

    @model_validator(mode="after")
    def _fits(self) -> "SlurmTrainSection":
        _check_options("srun_options", self.srun_options)
        if self.wheelhouse and (self.python or self.container):
            raise ValueError("wheelhouse installs the interpreter on each node: leave out python and container")
        return self


def _seconds(limit: str) -> int:
    """Convert a time limit, in the form D-HH:MM:SS or HH:MM:SS, to seconds."""
    days, _, rest = limit.rpartition("-")
    hours, minutes, seconds = (int(number) for number in rest.split(":"))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _check_options(key: str, words: tuple[str, ...]) -> None:
    if wrong := [word for word in words if not word.startswith("-")]:
        raise ValueError(f"{key}: {wrong[0]!r} is not an option: write --name=value as one word")


class SlurmSection(Section):
    """What each SLURM job requests. See `man sbatch` and [cluster.md](cluster.md)."""

    headings: ClassVar[dict[str, str]] = {
        "partition": "All jobs",
        "array_tasks": "Job arrays of the data stages",
    }

    partition: NonIdentity[str | None] = Field(None, description="Partition. Defaults to the cluster's default.")
    account: NonIdentity[str | None] = Field(None, description="Account. Defaults to your default account.")
    qos: NonIdentity[str | None] = Field(None, description="Quality of service. Defaults to your default QOS.")
    constraint: NonIdentity[str | None] = Field(None, description="Node features to require.")
    time: NonIdentity[str] = Field("24:00:00", **_TIME, description="Time limit of a job, as HH:MM:SS or D-HH:MM:SS.")
    options: NonIdentity[tuple[str, ...]] = Field(
        (), description="Other options for sbatch, such as `[--nice=100, --exclude=n7]`. They override the keys above."
    )
    array_tasks: NonIdentity[int] = Field(16, ge=1, description="Number of tasks per data stage.")
    array_limit: NonIdentity[int] = Field(
        0, ge=0, description="Maximum number of tasks that run at the same time. 0 disables the limit."
    )
    cpus: NonIdentity[int] = Field(4, ge=1, description="CPUs and worker processes per task.")
    memory: NonIdentity[str | None] = Field(
        "8G", **_MEMORY, description="Memory per task. If null, the partition's default is used."
    )

    train: SlurmTrainSection = SlurmTrainSection()

    @model_validator(mode="after")
    def _fits(self) -> "SlurmSection":
        _check_options("options", self.options)
        return self


class LaunchSection(Section):
    """How processes are started. These keys do not define the run, so a resumed run may change them."""

    headings: ClassVar[dict[str, str]] = {
        "kind": "Processes and nodes",
        "device": "Devices",
        "join_seconds": "Time limits",
    }

    kind: Literal["local", "torchrun", "deepspeed", "slurm"] = Field(
        "local",
        description="How processes are started. `local`: on this machine. `torchrun`: run the same command on each "
        "node. `deepspeed`: DeepSpeed's launcher, on this machine or over ssh. `slurm`: submit a job.",
    )
    processes: int = Field(1, ge=1, description="Processes per node. On GPUs, use one per GPU.")
    nodes: int = Field(1, ge=1, description="Number of nodes.")
    rendezvous: str | None = Field(
        None,
        pattern=r"^[^\s:]+:\d+$",
        examples=["head:29500"],
        description="HOST:PORT of the rendezvous. For `torchrun`, it is the same on every node. For `deepspeed`, it is "
        "an address of the first host.",
    )
    hostfile: OptionalPath = Field(
        None,
        description="File with one `HOST slots=N` line per host, for `deepspeed`. By default, only this machine is "
        "used.",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto",
        description="Which device to use. `auto`: GPUs if there are any, otherwise Apple's GPU (`mps`, one process), "
        "otherwise the CPU.",
    )
    device_memory: NonIdentity[str | None] = Field(
        None,
        pattern=r"^[1-9]\d*[KMGT]$",
        examples=["80G"],
        description="Memory available to each process. Defaults to the GPU's memory or, on CPU, to the machine's "
        "memory divided by the number of processes.",
    )
    threads: int = Field(
        0, ge=0, description="CPU threads per process. 0 means the number of cores divided by the number of processes."
    )
    join_seconds: int = Field(600, ge=1, description="Time limit for all nodes to join, in seconds.")
    probe_seconds: int = Field(
        60,
        ge=0,
        description="Time limit, in seconds, for a communication check across all ranks before anything is loaded. 0 "
        "disables the check.",
    )
    grace_seconds: int = Field(
        60,
        ge=1,
        description="Grace period, in seconds, for a run to save a checkpoint after a signal before it is killed. With "
        "torch 2.11, it is always 30, because its torchrun has no `--shutdown-timeout`.",
    )
    slurm: SlurmSection = SlurmSection()

    @model_validator(mode="after")
    def _fits(self) -> "LaunchSection":
        train = self.slurm.train
        if (train.min_nodes or 0) > self.nodes:
            raise ValueError(f"slurm.train.min_nodes ({train.min_nodes}) exceeds nodes ({self.nodes})")
        if self.device == "mps" and (self.processes * self.nodes > 1 or self.kind == "slurm" or self.hostfile):
            raise ValueError("device=mps is one process on this machine: leave out processes, nodes, slurm, hostfile")
        limit = train.time or self.slurm.time
        if self.kind == "slurm" and limit and _seconds(limit) <= train.signal_seconds:
            raise ValueError(
                f"slurm.train.signal_seconds ({train.signal_seconds}) must be below the time limit ({limit}): the job "
                "would be stopped as soon as it starts"
            )
        if self.kind == "slurm" and train.signal_seconds < self.grace_seconds + 10:
            raise ValueError(
                f"slurm.train.signal_seconds ({train.signal_seconds}) must be at least grace_seconds "
                f"({self.grace_seconds}) + 10: the job needs time to save and to return to the queue"
            )
        return self
