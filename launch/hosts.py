"""Reads the hosts in a hostfile, checks that they respond, and sends signals to their workers.

This command sends a signal to the workers on this host that use FOLDER for their status files:

    python -m launch.hosts SIGNAL FOLDER
"""

import contextlib
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from artefacts.checkout import CHECKOUT
from artefacts.errors import RequestError
from artefacts.worker_status import STATUS


def read(hostfile: Path, nodes: int, processes: int) -> list[str]:
    """Return the first ``nodes`` hosts in a hostfile, whose lines are ``HOST slots=N``.

    Raises:
        RequestError: the hostfile cannot be read, has an invalid line, or has too few hosts or slots.
    """
    try:
        lines = hostfile.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise RequestError(f"launch.hostfile: {hostfile}: {error.strerror}") from None
    slots: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not (text := line.partition("#")[0].strip()):
            continue
        if not (match := re.fullmatch(r"(\S+)\s+slots=(\d+)", text)):
            raise RequestError(f"launch.hostfile: {hostfile}, line {number}: write HOST slots=N, not {text!r}")
        slots[match[1]] = int(match[2])
    names = list(slots)[:nodes]
    if len(names) < nodes:
        raise RequestError(f"launch.hostfile: {hostfile} has {len(names)} hosts, but launch.nodes is {nodes}")
    if few := [name for name in names if slots[name] < processes]:
        raise RequestError(
            f"launch.hostfile: {hostfile} has {slots[few[0]]} slots for {few[0]}, but launch.processes is {processes}"
        )
    return names


def check(names: tuple[str, ...], folder: Path, seconds: int = 30) -> None:
    """Check that ``folder``, which exists on this host, exists on every host.

    Raises:
        RequestError: some hosts do not respond in time or do not see the folder; the message names them.
    """
    command = f"test -d {shlex.quote(str(folder))} && echo seen || echo unseen"
    answers = _run_on(names, command, seconds)
    silent = [name for name, answer in answers.items() if not answer]
    blind = [name for name, answer in answers.items() if answer == "unseen"]
    if silent:
        raise RequestError(
            f"launch.hostfile: no answer over ssh within {seconds} s from {', '.join(silent)}: `ssh HOST true` "
            "and `PDSH_RCMD_TYPE=ssh pdsh -w HOST true` must work without a password"
        )
    if blind:
        raise RequestError(f"run.root: {folder} does not exist on {', '.join(blind)}: put it on a shared file system")


def send(names: tuple[str, ...], number: int, status: Path, seconds: int = 20) -> None:
    """Send a signal to the workers on these hosts that use the folder ``status`` for their status files."""
    words = [sys.executable, "-m", "launch.hosts", signal.Signals(number).name, str(status)]
    _run_on(names, f"cd {shlex.quote(str(CHECKOUT))} && {shlex.join(words)}", seconds)


def _run_on(names: tuple[str, ...], command: str, seconds: int) -> dict[str, str]:
    """Run a shell command on every host, and return each host's output, or "" if the host does not respond in time."""
    argv = ["pdsh", "-R", "ssh", "-t", str(seconds), "-u", str(seconds), "-w", ",".join(names)]
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            [*argv, command.replace("%", "%%")],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds + 10,
            check=False,
        )
        outputs = dict.fromkeys(names, "")
        for line in done.stdout.splitlines():
            name, _, text = line.partition(": ")
            outputs[name] = text.strip()
        return outputs
    return dict.fromkeys(names, "")


def workers_here(status: str) -> list[psutil.Process]:
    """List the workers on this host that use the folder ``status`` for their status files."""
    workers = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words, environment = process.cmdline(), process.environ()
            if environment.get(STATUS) == status and words[1:4] == ["-u", "-m", "training"]:
                workers.append(process)
    return workers


def main(arguments: list[str]) -> int:
    name, status = arguments
    for process in workers_here(status):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.Signals[name])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
