"""Check that this Python interpreter has the version and the packages that Millrace needs.

``python .ci/environment.py [PACKAGE ...]`` also checks for the listed packages. If anything is missing, the script
prints one line about it and exits with status 2. The script must run on any version of Python 3.
"""

import re
import sys
from pathlib import Path


def missing(more):
    """Yield the packages from pyproject.toml and from ``more`` that are not installed."""
    import tomllib
    from importlib import metadata

    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text(encoding="utf-8"))["project"]
    for wanted in [*project["dependencies"], *more]:
        name = re.split("[<>=]", wanted)[0]
        try:
            metadata.distribution(name)
        except metadata.PackageNotFoundError:
            yield name


if __name__ == "__main__":
    here = "error: PYTHON=" + sys.executable
    if not (3, 11) <= sys.version_info < (3, 13):
        print(here + " is Python {}.{}: Millrace needs 3.11 or 3.12".format(*sys.version_info), file=sys.stderr)
        sys.exit(2)
    lacks = [*missing(sys.argv[1:])]
    if lacks:
        fix = "install them with its pip from requirements.lock and requirements-dev.lock, or leave PYTHON out"
        print(here + " lacks " + ", ".join(lacks) + ": " + fix, file=sys.stderr)
        sys.exit(2)
