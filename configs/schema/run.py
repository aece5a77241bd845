"""The run: its name, where it lies on disk, and the seed that everything random in it follows from."""

from typing import Literal

from pydantic import Field

from configs.schema.base import NonIdentity, PathText, Section


class RunSection(Section):
    name: NonIdentity[str] = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", examples=["owt-0.5b"], description="folder of the run under run.root"
    )
    root: NonIdentity[PathText] = Field("runs", description="folder that holds runs; may be a shared file system")
    replace: NonIdentity[bool | Literal["finetune"]] = Field(
        False,
        description="where a changed key makes this another run: move the old weights and the data that they were "
        "trained on aside; finetune: those of fine-tuning alone; otherwise the change is refused",
    )
    seed: int = Field(1234, ge=0, lt=2**63, description="seed of sampling, initialisation and data order")

    def may_replace(self, stage: str) -> bool:
        """Whether another run's weights of a stage may be moved aside."""
        return self.replace is True or self.replace == stage
