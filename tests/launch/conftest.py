from collections.abc import Iterator

import pytest

from tests.support.launch.slurm_cluster import SlurmCluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[SlurmCluster]:
    """A SLURM cluster of two nodes on this host."""
    with SlurmCluster() as started:
        yield started
