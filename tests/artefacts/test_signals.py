import os
import subprocess
import sys

import pytest

from tests.support.paths import CHECKOUT
from tests.support.waiting import PATIENCE

# The signal arrives in a destructor, in which Python prints an exception and continues.
_COMMAND = """
import os, signal, sys
from artefacts.progress import bar
from configs.command import run

class Leaving:
    def __del__(self):
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        sum(range(1000))

def main(arguments):
    with bar(3, "step", "work") as progress:
        progress.update()
        Leaving()
        print("went on")
        progress.update()
    print("to the end")

run(main, restartable=True)
"""


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [("SIGUSR1", 75, "stopped by SIGUSR1: run the same command"), ("SIGINT", 130, "stopped: run the same command")],
)
def test_a_signal_that_a_destructor_swallows_stops_the_next_step(name, status, message):
    line = [sys.executable, "-c", _COMMAND, name]
    done = subprocess.run(line, cwd=CHECKOUT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == status and done.stdout == "went on\n"
    assert done.stderr.splitlines()[-1].startswith(f"{message} ")


# An extension that is interrupted by a signal during its import raises an ImportError.
_IMPORT = """
import os, signal, sys
from configs.command import run

def main(arguments):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except BaseException:
        raise ImportError("initialization failed") from None

run(main, restartable=True)
"""


def test_an_error_caused_by_a_signal_counts_as_the_signal():
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT], cwd=CHECKOUT, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 75
    assert done.stderr.startswith("stopped by SIGTERM: run the same command ") and done.stderr.count("\n") == 1


_TOO_LARGE = """
import resource
from configs.command import run

def main(arguments):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    with open("large", "wb", buffering=0) as file:
        while True:
            file.write(bytes(600))

run(main)
"""


def test_a_file_above_the_size_limit_gives_a_one_line_error(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    line = [sys.executable, "-c", _TOO_LARGE]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "(ulimit -f) allows" in done.stderr


# The exit status is decided when Python restores the default signal handlers.
_ENDED = """
import atexit, os, signal, sys
from configs.command import run

atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))
run(lambda arguments: 0, restartable=True)
"""


def test_a_signal_after_the_end_changes_nothing():
    done = subprocess.run(
        [sys.executable, "-c", _ENDED], cwd=CHECKOUT, capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.returncode, done.stderr) == (0, "")
