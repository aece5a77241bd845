"""How the processes of a run are started: nothing here changes what is computed."""

from typing import Any, Literal

from pydantic import Field, model_validator

from configs.schema.base import NonIdentity, OptionalPath, Section

_TIME: dict[str, Any] = {"pattern": r"^(\d+-\d{1,2}|\d+):[0-5]\d:[0-5]\d$", "examples": ["24:00:00", "2-12:00:00"]}
_MEMORY: dict[str, Any] = {"pattern": r"^\d+[KMGT]?$", "examples": ["8G"]}


class SlurmTrainSection(Section):
    """What a job of pretraining or fine-tuning asks for, beside what all jobs do; it has launch.nodes nodes."""

    partition: NonIdentity[str | None] = Field(None, description="left out: launch.slurm.partition")
    time: NonIdentity[str | None] = Field(None, **_TIME, description="limit of a job; left out: launch.slurm.time")
    min_nodes: NonIdentity[int | None] = Field(
        None, ge=1, description="begin with fewer nodes than launch.nodes, down to so many, where not all are free"
    )
    gpus: NonIdentity[int | None] = Field(
        None, ge=0, description="GPUs a node; left out: launch.processes, or none where launch.device=cpu"
    )
    cpus: NonIdentity[int | None] = Field(None, ge=1, description="CPUs a node; left out: what the partition gives")
    memory: NonIdentity[str | None] = Field(
        None, **_MEMORY, description="memory a node, 0: all of it; left out: what the partition gives"
    )
    signal_seconds: NonIdentity[int] = Field(
        180, ge=30, description="so long before its time is up the job is asked to save and leave"
    )
    requeues: NonIdentity[int] = Field(
        1000, ge=0, description="most times that a job goes back into the queue: stopped, or failed after new steps"
    )
    chain: NonIdentity[int] = Field(
        0,
        ge=0,
        description="an array of so many jobs, each goes on from the last, in place of going back into the queue",
    )
    python: NonIdentity[str | None] = Field(
        None, description="interpreter on the nodes; left out: that of the submission"
    )
    container: NonIdentity[tuple[str, ...]] = Field(
        (), description="words before the command on each node, such as [apptainer, exec, --nv, image.sif]"
    )
    srun_options: NonIdentity[tuple[str, ...]] = Field(
        (), description="more options of srun, such as [--container-image=image.sqsh]"
    )
    wheelhouse: NonIdentity[OptionalPath] = Field(
        None, description="folder of `make wheelhouse`: each node installs from it, on its own disk, before it begins"
    )

    @model_validator(mode="after")
    def _fits(self) -> "SlurmTrainSection":
        _check_options("srun_options", self.srun_options)
        if self.wheelhouse and (self.python or self.container):
            raise ValueError("wheelhouse makes the interpreter on each node: leave out python and container")
        return self


def _seconds(limit: str) -> int:
    """Of D-HH:MM:SS or HH:MM:SS."""
    days, _, rest = limit.rpartition("-")
    hours, minutes, seconds = (int(number) for number in rest.split(":"))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _check_options(key: str, words: tuple[str, ...]) -> None:
    if wrong := [word for word in words if not word.startswith("-")]:
        raise ValueError(f"{key}: {wrong[0]!r} is no option: write --name=value as one word")


class SlurmSection(Section):
    """What is asked of SLURM for each job; see ``man sbatch``."""

    partition: NonIdentity[str | None] = Field(None, description="left out: the cluster's default")
    account: NonIdentity[str | None] = Field(None, description="left out: the user's default")
    qos: NonIdentity[str | None] = Field(None, description="quality of service; left out: the default")
    constraint: NonIdentity[str | None] = Field(None, description="features that a node must have")
    time: NonIdentity[str] = Field(
        "24:00:00",
        **_TIME,
        description='limit of a job: "HH:MM:SS" or D-HH:MM:SS',
    )
    array_tasks: NonIdentity[int] = Field(16, ge=1, description="tasks that share a data stage")
    array_limit: NonIdentity[int] = Field(0, ge=0, description="tasks that run at a time; 0: all")
    cpus: NonIdentity[int] = Field(4, ge=1, description="CPUs, and so worker processes, a task of the data stages")
    memory: NonIdentity[str | None] = Field(
        "8G",
        **_MEMORY,
        description="memory a task of theirs, such as 8G; null: what the partition gives",
    )
    options: NonIdentity[tuple[str, ...]] = Field(
        (), description="more options of sbatch, which win over those above, such as [--nice=100, --exclude=n7]"
    )

    train: SlurmTrainSection = SlurmTrainSection()

    @model_validator(mode="after")
    def _fits(self) -> "SlurmSection":
        _check_options("options", self.options)
        return self


class LaunchSection(Section):
    kind: Literal["local", "torchrun", "deepspeed", "slurm"] = Field(
        "local",
        description="local: this machine; torchrun: this node of several, the same command on each; deepspeed: "
        "DeepSpeed's launcher, here or on the hosts of a file; slurm: a job, submitted",
    )
    processes: int = Field(1, ge=1, description="processes a node: one a GPU, or CPU processes")
    nodes: int = Field(1, ge=1)
    rendezvous: str | None = Field(
        None,
        pattern=r"^[^\s:]+:\d+$",
        examples=["head:29500"],
        description="torchrun: HOST:PORT where the nodes meet, the same on every node; deepspeed: of the first host",
    )
    hostfile: OptionalPath = Field(None, description="deepspeed: file of HOST slots=N lines; left out: this machine")
    join_seconds: int = Field(600, ge=1, description="time in which all nodes must have come together")
    probe_seconds: int = Field(
        60, ge=0, description="time for a first exchange between all ranks, before anything is loaded; 0: none"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="auto: GPUs where there are any, else Apple's (mps, a single process), else cpu"
    )
    device_memory: NonIdentity[str | None] = Field(
        None,
        pattern=r"^[1-9]\d*[KMGT]$",
        examples=["80G"],
        description="what a process may use, such as 80G; left out: the GPU's, or on CPU the machine's share",
    )
    threads: int = Field(0, ge=0, description="CPU threads a process; 0: cores divided by processes")
    grace_seconds: int = Field(
        60,
        ge=1,
        description="time that a signalled run has to save before it is killed; "
        "30 where torchrun has no --shutdown-timeout (torch 2.11)",
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
                f"slurm.train.signal_seconds ({train.signal_seconds}) is no less than the time limit ({limit}): the "
                "job would be told to stop as it begins"
            )
        if self.kind == "slurm" and train.signal_seconds < self.grace_seconds + 10:
            raise ValueError(
                f"slurm.train.signal_seconds ({train.signal_seconds}) leaves no time for grace_seconds "
                f"({self.grace_seconds}) and 10 more to go back into the queue"
            )
        return self
