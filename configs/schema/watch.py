"""When a training run reacts to skipped steps, loss spikes and hangs."""

from pydantic import Field

from configs.schema.base import NonIdentity, Section


class WatchSection(Section):
    """Limits for skipped steps, loss spikes and hangs. See [training.md](training.md#watching-a-run)."""

    skipped_in_a_row: NonIdentity[int] = Field(
        10,
        ge=0,
        description="Maximum number of consecutive steps that may be skipped because the loss or a gradient is NaN or "
        "infinite. If one more is skipped, the run fails.",
    )
    spike_deviations: NonIdentity[float] = Field(
        6.0,
        ge=0,
        description="A loss this many standard deviations above its recent mean is logged as a spike. 0 disables this.",
    )
    spike_window: NonIdentity[int] = Field(
        128, ge=16, description="Number of steps over which the recent mean is computed."
    )
    hang_seconds: NonIdentity[int] = Field(
        1800,
        ge=0,
        description="If a step, including validation and saving, takes longer than this many seconds, every rank "
        "writes its stack to `stacks/` and the run stops with status 75. 0 disables this.",
    )
