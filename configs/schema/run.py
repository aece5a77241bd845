"""The run: its name, its folder and its seed."""

from typing import Literal

from pydantic import Field

from configs.schema.base import NonIdentity, PathText, Section


class RunSection(Section):
    """The name, output folder and seed of the run."""

    name: NonIdentity[str] = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        examples=["owt-0.5b"],
        description="Name of the run. Its files are written to `run.root/run.name`.",
    )
    root: NonIdentity[PathText] = Field("runs", description="Folder for all runs. May be on a shared file system.")
    replace: NonIdentity[bool | Literal["finetune"]] = Field(
        False,
        description="What to do if a changed key defines a different run and the folder already contains weights. "
        "`false` rejects the change. `true` moves the old weights, and the data they were trained on, to `previous/`. "
        "`finetune` moves only fine-tuned weights.",
    )
    seed: int = Field(
        1234, ge=0, lt=2**63, description="Seed for data sampling, weight initialization and training order."
    )

    def may_replace(self, stage: str) -> bool:
        """Return whether another run's weights for this stage may be moved aside."""
        return self.replace is True or self.replace == stage
