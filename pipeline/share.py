"""Which pieces of a stage's work one task does, when several share it: a SLURM array, or a few terminals."""

from typing import NamedTuple


class Share(NamedTuple):
    """Task ``task`` of ``tasks``: it does every ``tasks``-th piece."""

    task: int
    tasks: int

    def owns(self, number: int) -> bool:
        return number % self.tasks == self.task


#: All of the work.
WHOLE = Share(0, 1)
