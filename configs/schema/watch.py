"""When a training run is not well, and what it does then."""

from pydantic import Field

from configs.schema.base import NonIdentity, Section


class WatchSection(Section):
    skipped_in_a_row: NonIdentity[int] = Field(
        10, ge=0, description="steps skipped for a loss or gradient that is no number; one more in a row ends the run"
    )
    spike_deviations: NonIdentity[float] = Field(
        6.0, ge=0, description="a loss so many standard deviations over its recent mean is told as a spike; 0: none is"
    )
    spike_window: NonIdentity[int] = Field(128, ge=16, description="steps that the recent mean is over")
    hang_seconds: NonIdentity[int] = Field(
        1800,
        ge=0,
        description="no step (validation and saving in it) for so long: every rank's stack is written down and the run "
        "ends with status 75; 0: it waits for ever",
    )
