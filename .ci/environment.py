"""Whether the Python that runs this file has what Millrace runs with: one line says what is missing, with status 2.

``python .ci/environment.py [PACKAGE ...]``: packages needed besides. It must run on any Python 3.
"""

import re
import sys
from pathlib import Path


def missing(more):
    """The packages of pyproject.toml, and of ``more``, that are not installed here."""
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
