"""A temporary SLURM cluster on this host: munge, a controller and a few nodes, all in one temporary folder.

For tests: ``with SlurmCluster() as cluster`` starts it, and ``cluster.env()`` is the environment for ``sbatch`` and
the other commands. It needs root and Debian's ``slurmctld slurmd slurm-client munge``, and leaves no processes behind,
not even jobs. Nodes share the host's cores; their CPUs and memory exist in the configuration only.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from launch.plan import free_port
from tests.support.waiting import PATIENCE

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")

_CONFIGURATION = """\
ClusterName=millrace
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
EnforcePartLimits=ALL
MailProg=/bin/true
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=100000
KillWait=5
CompleteWait=0
MinJobAge=600
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/%n.spool
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
"""
_NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory={memory}\n"
#: Jobs of the second partition preempt those of the first, which get a signal and grace time, and are requeued.
_PARTITIONS = """\
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes={names} Default=YES MaxTime=1-00:00:00 State=UP PriorityTier=1 GraceTime=40
PartitionName=urgent Nodes={names} MaxTime=1-00:00:00 State=UP PriorityTier=2 PreemptMode=OFF
"""


def missing() -> str | None:
    """Why a cluster cannot be started here; None if it can."""
    if os.geteuid() != 0:
        return "a SLURM cluster needs root"
    absent = [name for name in DAEMONS if not shutil.which(name)]
    return f"not installed: {', '.join(absent)}" if absent else None


class SlurmCluster:
    """One controller and ``nodes`` nodes named n1, n2, ..., each with ``cpus`` CPUs and ``memory`` MB; root only."""

    def __init__(self, nodes: int = 2, cpus: int = 2, memory: int = 4096) -> None:
        self.names = [f"n{number + 1}" for number in range(nodes)]
        self._cpus, self._memory = cpus, memory
        self._daemons: list[subprocess.Popen[bytes]] = []
        self.folder = Path()

    def __enter__(self) -> "SlurmCluster":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def env(self) -> dict[str, str]:
        """The caller's environment, with SLURM's commands pointed at this cluster."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
        return {**kept, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self) -> None:
        """Start all daemons; returns once every node is idle."""
        # Short, because the path of a socket has at most 107 bytes; readable by all, which munge requires.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.folder.chmod(0o755)
        try:
            self._configure()
            self._start_munge()
            self._spawn("slurmctld", "-D", "-i", "-f", str(self.folder / "slurm.conf"))
            for name in self.names:
                self._spawn("slurmd", "-D", "-N", name, "-f", str(self.folder / "slurm.conf"))
            self._wait(self._all_idle, "its nodes are not idle")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Cancel all jobs, stop all daemons and processes of jobs, and remove the folder."""
        if self._daemons:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                self.run("scancel", "--user=root", timeout=10)
                self._until(lambda: not self.run("squeue", "--noheader", timeout=10).stdout.strip(), 10.0)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()
        for process in self._left():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *argv: str, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """Run a SLURM command on this cluster; captures its output."""
        return subprocess.run(argv, env=self.env(), capture_output=True, text=True, timeout=timeout, check=False)

    def states(self, job: str) -> dict[str, str]:
        """Task id, such as 12_3, -> state, for all tasks of a job; if it is not an array, for the job itself."""
        listed = self.run("squeue", "--noheader", "--array", "--states=all", f"--jobs={job}", "--format=%i %T").stdout
        return dict(line.split() for line in listed.splitlines())

    def wait_for(self, jobs: list[str]) -> dict[str, str]:
        """Wait until no task of these jobs is pending or running; returns their states by id.

        Raises:
            TimeoutError: some still are.
        """
        states: dict[str, str] = {}

        def ended() -> bool:
            states.update({task: state for job in jobs for task, state in self.states(job).items()})
            return not set(states.values()) & {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED"}

        if not self._until(ended, PATIENCE):
            raise TimeoutError(f"after {PATIENCE} s: {states}")
        return states

    def _configure(self) -> None:
        host = socket.gethostname().split(".")[0]
        ports = _free_ports(1 + len(self.names))
        text = _CONFIGURATION.format(host=host, folder=self.folder, controller_port=ports[0])
        for name, port in zip(self.names, ports[1:], strict=True):
            text += _NODE.format(name=name, host=host, port=port, cpus=self._cpus, memory=self._memory)
            (self.folder / f"{name}.spool").mkdir()
        text += _PARTITIONS.format(names=",".join(self.names))
        (self.folder / "state").mkdir()
        (self.folder / "slurm.conf").write_text(text)

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        places = {"key-file": key, "socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log"}
        options = [f"--{name}={self.folder / place}" for name, place in {**places, "seed-file": "munge.seed"}.items()]
        self._spawn("munged", "--foreground", "--force", *options)
        self._wait((self.folder / "munge.socket").exists, "munge has no socket")

    def _spawn(self, *argv: str) -> None:
        with open(self.folder / f"{argv[0]}-{len(self._daemons)}.out", "wb") as log:
            daemon = subprocess.Popen(argv, env=self.env(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._daemons.append(daemon)

    def _all_idle(self) -> bool:
        if ended := [daemon.args for daemon in self._daemons if daemon.poll() is not None]:
            raise RuntimeError(f"{ended[0]} ended:\n{self._words()}")
        listed = self.run("sinfo", "--noheader", "--Node", "--partition=main", "--format=%T").stdout.split()
        return listed == ["idle"] * len(self.names)

    def _wait(self, is_so: Callable[[], bool], complaint: str) -> None:
        if not self._until(is_so, PATIENCE):
            raise TimeoutError(f"SLURM did not start, {complaint}:\n{self._words()}")

    @staticmethod
    def _until(is_so: Callable[[], bool], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not is_so():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True

    def _words(self) -> str:
        """The last lines of every log."""
        logs = [*self.folder.glob("*.log"), *self.folder.glob("*.out")]
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in sorted(logs))

    def _left(self) -> list[psutil.Process]:
        """Processes of this cluster, recognized by the configuration file in their environment."""
        mark, processes = str(self.folder / "slurm.conf"), []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid != os.getpid() and process.environ().get("SLURM_CONF") == mark:
                    processes.append(process)
        return processes


def _free_ports(count: int) -> list[int]:
    """Different free ports of this host."""
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return sorted(ports)
