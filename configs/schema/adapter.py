"""Low-rank adapters for fine-tuning (LoRA, arXiv 2106.09685, and DoRA, arXiv 2402.09353)."""

from typing import Literal

from pydantic import Field, model_validator

from configs.schema.base import NonIdentity, OptionalPath, Section

#: Groups of layers that can have adapters.
Target = Literal["attention", "dense", "shared_experts", "routed_experts"]


class LoraSection(Section):
    """Train low-rank adapters and freeze the model's own weights.

    An adapter adds `alpha / rank * B @ A` to a weight matrix.
    [lora.md](lora.md) explains the choices.
    """

    rank: int = Field(gt=0, description="Rank of the adapters. With routed experts, a multiple of 8.")
    alpha: float = Field(gt=0, description="Scale of the adapters, which is divided by `rank`. Often twice `rank`.")
    targets: tuple[Target, ...] | None = Field(
        None,
        description="Which layers have adapters: `attention`, `dense` feed-forward layers, `shared_experts` and "
        "`routed_experts`. By default, all of them that the model has, except for routed experts.",
    )
    dora: bool = Field(
        False,
        description="Also train the magnitude of each row of the adapted matrices (DoRA). Not for routed experts.",
    )
    adapter: NonIdentity[OptionalPath] = Field(
        None,
        description="Folder of an adapter in peft's format to start from, such as another run's `export/adapter/`. By "
        "default, training starts from the model without an adapter.",
    )

    @model_validator(mode="after")
    def _fits(self) -> "LoraSection":
        if self.targets is not None and len(set(self.targets)) != len(self.targets):
            raise ValueError(f"targets ({', '.join(self.targets)}) names one of them twice")
        if self.targets == ():
            raise ValueError("targets is empty, so nothing would be trained: leave it out for the default")
        if self.routed and self.dora:
            raise ValueError(
                "dora does not work with routed_experts, for which peft has no format: leave one of them out"
            )
        if self.routed and self.rank % 8:
            raise ValueError(f"rank ({self.rank}) is not a multiple of 8, which adapters of routed_experts need")
        return self

    @property
    def routed(self) -> bool:
        """Whether routed experts have adapters."""
        return "routed_experts" in (self.targets or ())

    @property
    def scale(self) -> float:
        """Factor of the adapters' output."""
        return self.alpha / self.rank
