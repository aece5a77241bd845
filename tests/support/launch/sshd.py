"""A temporary ssh server on loopback, and the configuration for ssh and pdsh; needs root, sshd and pdsh."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from launch.plan import free_port
from tests.support.waiting import wait_until

_SERVER = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/key.pub
PidFile {folder}/pid
PermitRootLogin yes
StrictModes no
UsePAM no
"""
_CLIENT = """\
Host *
  Port {port}
  HostName 127.0.0.1
  IdentityFile {folder}/key
  IdentitiesOnly yes
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
"""


def missing() -> str | None:
    """Why the server cannot be started here; None if it can."""
    absent = [name for name in ("/usr/sbin/sshd", "pdsh", "ssh-keygen") if not shutil.which(name)]
    return f"not installed: {', '.join(absent)}" if absent else None if os.geteuid() == 0 else "sshd needs root"


class LoopbackSsh:
    """Every host name resolves to this host; ``env()`` is the environment for pdsh."""

    def __enter__(self) -> "LoopbackSsh":
        self._folder = Path(tempfile.mkdtemp(prefix="sshd-", dir="/tmp"))
        port = free_port()
        for name in ("host", "key"):
            argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self._folder / name)]
            subprocess.run(argv, check=True)
        for name, text in (("server", _SERVER), ("client", _CLIENT)):
            (self._folder / name).write_text(text.format(port=port, folder=self._folder))
        Path("/run/sshd").mkdir(exist_ok=True)
        self._server = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", str(self._folder / "server")])
        wait_until(self._answers, "answer of sshd")
        return self

    def _answers(self) -> bool:
        assert self._server.poll() is None, "sshd has ended"
        return subprocess.run(["ssh", "-F", str(self._folder / "client"), "a", "true"], check=False).returncode == 0

    def __exit__(self, *_: object) -> None:
        self._server.terminate()
        self._server.wait(10)
        shutil.rmtree(self._folder)

    def env(self) -> dict[str, str]:
        return {**os.environ, "PDSH_SSH_ARGS_APPEND": f"-F {self._folder / 'client'}"}
