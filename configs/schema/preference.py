"""Learning from preferences: the loss over pairs of a chosen and a rejected answer."""

from typing import Literal

from pydantic import Field

from configs.schema.base import Section


class PreferenceSection(Section):
    """The loss of a stage with `method: dpo`, under the names of `trl`'s `DPOConfig`.

    The reference is the stage's start weights.
    """

    loss: Literal["sigmoid", "ipo", "sigmoid_norm"] = Field(
        "sigmoid",
        description="Loss of a pair. `sigmoid`: DPO. `sigmoid_norm`: DPO on log-probabilities per token, so that the "
        "lengths of answers do not matter. `ipo`: squared distance of the log-probabilities per token from a margin, "
        "which limits how far the preferences are learned.",
    )
    beta: float = Field(
        0.1,
        gt=0,
        description="Strength of the tie to the reference: with a higher value, the model stays closer to it. For "
        "`ipo`, the margin is `1 / (2 * beta)`. `sigmoid_norm` needs higher values, such as 5.",
    )
