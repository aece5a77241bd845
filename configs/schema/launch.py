"""How the processes of a run are started: nothing here changes what is computed."""

from typing import Any, Literal

from pydantic import Field, model_validator

from configs.schema.base import Free, Section


class SlurmSection(Section):
    """What is asked of SLURM for each job; see ``man sbatch``."""

    partition: Free[str | None] = Field(None, description="left out: the cluster's default")
    account: Free[str | None] = Field(None, description="left out: the user's default")
    qos: Free[str | None] = Field(None, description="quality of service; left out: the default")
    constraint: Free[str | None] = Field(None, description="features that a node must have")
    time: Free[str] = Field(
        "24:00:00",
        pattern=r"^(\d+-\d{1,2}|\d+):[0-5]\d:[0-5]\d$",
        description='limit of a job: "HH:MM:SS" or D-HH:MM:SS',
    )
    array_tasks: Free[int] = Field(16, ge=1, description="tasks that share a data stage")
    array_limit: Free[int] = Field(0, ge=0, description="tasks that run at a time; 0: all")
    cpus: Free[int] = Field(4, ge=1, description="CPUs, and so worker processes, a task")
    memory: Free[str | None] = Field(
        "8G", pattern=r"^\d+[KMGT]?$", description="memory a task, such as 8G; null: what the partition gives"
    )
    options: Free[tuple[str, ...]] = Field(
        (), description="more options of sbatch, which win over those above, such as [--nice=100, --exclude=n7]"
    )

    @model_validator(mode="before")
    @classmethod
    def _as_text(cls, given: Any) -> Any:
        """YAML reads an unquoted 24:00:00 to the base 60."""
        if isinstance(given, dict) and isinstance(given.get("time"), int):
            raise ValueError('time: put it in quotes, such as "24:00:00": YAML reads it as a number without')
        return given

    @model_validator(mode="after")
    def _fits(self) -> "SlurmSection":
        if wrong := [word for word in self.options if not word.startswith("-")]:
            raise ValueError(f"options: {wrong[0]!r} is no option: write --name=value as one word")
        return self


class LaunchSection(Section):
    kind: Literal["local", "torchrun"] = Field("local", description="local: this machine; torchrun: several")
    processes: int = Field(1, ge=1, description="processes a node: one a GPU, or CPU processes")
    nodes: int = Field(1, ge=1)
    rendezvous: str | None = Field(
        None, pattern=r"^[^\s:]+:\d+$", description="torchrun: HOST:PORT where the nodes meet, the same on every node"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: GPUs where there are any")
    device_memory: Free[str | None] = Field(
        None,
        pattern=r"^[1-9]\d*[KMGT]?$",
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
