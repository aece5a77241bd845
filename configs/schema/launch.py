"""How the processes of a run are started: nothing here changes what is computed."""

from typing import Literal

from pydantic import Field

from configs.schema.base import Section


class LaunchSection(Section):
    kind: Literal["local", "torchrun"] = Field("local", description="local: this machine; torchrun: several")
    processes: int = Field(1, ge=1, description="processes a node: one a GPU, or CPU processes")
    nodes: int = Field(1, ge=1)
    rendezvous: str | None = Field(
        None, pattern=r"^[^\s:]+:\d+$", description="torchrun: HOST:PORT where the nodes meet, the same on every node"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: GPUs where there are any")
    threads: int = Field(0, ge=0, description="CPU threads a process; 0: cores divided by processes")
    grace_seconds: int = Field(60, ge=1, description="time that a signalled run has to save before it is killed")
