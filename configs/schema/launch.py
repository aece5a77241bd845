"""How the processes of a run are started: nothing here changes what is computed."""

from typing import Literal

from pydantic import Field

from configs.schema.base import Section


class LaunchSection(Section):
    kind: Literal["local", "torchrun"] = Field("local", description="local: this machine; torchrun: several")
    processes: int = Field(1, ge=1, description="processes a node: one a GPU, or CPU processes")
    nodes: int = Field(1, ge=1)
    node_rank: int | None = Field(None, ge=0, description="torchrun: this node's number; c10d can do without")
    rendezvous: str | None = Field(None, description="torchrun: HOST:PORT of the rendezvous, the same on every node")
    threads: int = Field(0, ge=0, description="CPU threads a process; 0: cores divided by processes")
    grace_seconds: int = Field(60, ge=1, description="time that a signalled run has to save before it is killed")
