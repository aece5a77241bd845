"""Compile Millrace's C code with the machine's compiler on first use, and cache the result."""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from artefacts.checkout import CHECKOUT

_FLAGS = ("-std=c11", "-O3", "-shared", "-fPIC")
#: Generates code for this machine's processor. The code may not run on other processors.
_THIS_PROCESSOR = "-march=native"
_SECONDS = 120
#: Environment variable that lists the C files whose compilation failure was already reported, so that child processes
#: do not report it again.
_REPORTED = "MILLRACE_NO_NATIVE_CODE_REPORTED"


def folders() -> tuple[Path, Path]:
    """Return the two folders where compiled code is cached.

    The first folder is in ``MILLRACE_CACHE`` (default: the checkout's ``.cache``). The second folder is in the user's
    cache. It is used if the first is not writable.
    """
    chosen = os.environ.get("MILLRACE_CACHE")
    return (Path(chosen) if chosen else CHECKOUT / ".cache") / "native", user_cache() / "native"


def user_cache() -> Path:
    """Return Millrace's folder in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "millrace"


def may_write(folder: Path) -> bool:
    """Return whether a folder is writable, or can be created if it does not exist."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return existing.is_dir() and os.access(existing, os.W_OK)


@functools.cache
def library(source: Path, *flags: str) -> ctypes.CDLL | None:
    """Compile a C file with additional ``flags``, and load it. On failure, print a line to stderr and return None.

    The cache key is a hash of the source, the compiler, the flags and the machine. If several processes need the
    library at the same time, each compiles its own copy and renames it into place. No lock is needed, and no process
    loads an incomplete file.
    """
    try:
        compiler = shlex.split(os.environ.get("CC") or "cc")
        if shutil.which(compiler[0]) is None:
            raise OSError(f"no C compiler ({compiler[0]})")
        name = Path(_key(compiler, source, flags), f"{source.stem}.so")
        for folder in folders():
            with contextlib.suppress(OSError):
                return ctypes.CDLL(str(folder / name))
        folder = next(filter(may_write, folders()), folders()[0])
        return _compiled([*compiler, *_FLAGS, *flags], source, folder / name)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        _report(source, error)
        return None


def _key(compiler: list[str], source: Path, flags: tuple[str, ...]) -> str:
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=True, timeout=_SECONDS).stdout
    machine = f"{platform.system()} {platform.machine()} {' '.join(_FLAGS + flags)}".encode()
    if _THIS_PROCESSOR in flags:
        machine += _instructions()
    return hashlib.sha256(b"\0".join([source.read_bytes(), version, machine])).hexdigest()[:32]


def _instructions() -> bytes:
    """Return this processor's instruction sets.

    They are part of the cache key, because nodes with different processors may share a cache.
    """
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    known = (line for line in lines if line.lower().startswith((b"flags", b"features")))
    return next(known, platform.processor().encode())


def _compiled(compiler: list[str], source: Path, target: Path) -> ctypes.CDLL:
    """Compile a C file and load the result.

    The compiler writes its output next to ``target``, and the file is then renamed. If the folder is not writable, the
    result is not cached.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder: str | None = str(target.parent) if os.access(target.parent, os.W_OK) else None
    except OSError:
        folder = None
    with tempfile.TemporaryDirectory(prefix=".building-", dir=folder) as work:
        built = Path(work) / target.name
        command = [*compiler, "-o", str(built), str(source), "-lm"]
        subprocess.run(command, capture_output=True, check=True, timeout=_SECONDS)
        loaded = ctypes.CDLL(str(built))
        if folder is not None:
            with open(built, "rb") as stream:
                os.fsync(stream.fileno())
            os.replace(built, target)
        return loaded


def _report(source: Path, error: Exception) -> None:
    reported = os.environ.get(_REPORTED, "").split()
    if source.name in reported:
        return
    os.environ[_REPORTED] = " ".join([*reported, source.name])
    message = error
    if isinstance(error, subprocess.CalledProcessError):
        lines = error.stderr.decode(errors="replace").strip().splitlines()
        message = next((line for line in lines if "error:" in line), lines[0] if lines else error)
    print(f"{source.name} is not compiled ({message}): slower without it", file=sys.stderr, flush=True)
