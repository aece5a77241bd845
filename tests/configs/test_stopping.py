import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# The signal arrives in a destructor, where Python prints an exception and goes on.
_COMMAND = """
import os, signal
from artefacts.progress import bar
from configs.command import run

class Leaving:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGUSR1)
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


def test_a_signal_that_a_destructor_swallows_stops_the_next_step():
    found = subprocess.run([sys.executable, "-c", _COMMAND], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert found.returncode == 75 and found.stdout == "went on\n"
    assert found.stderr.splitlines()[-1] == "stopped by SIGUSR1: the same command goes on where it was"
