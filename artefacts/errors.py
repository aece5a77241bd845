"""Faults that a command reports in one line."""

import errno

#: Error numbers by which a disk, or a file system over the network, says that it failed, whatever a file holds.
STORAGE_FAULTS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)


class RequestError(Exception):
    """The request is wrong; the message names the thing and the cure, in one line. Commands exit 2 on it."""


class UnreachableError(RequestError):
    """A service over the network does not answer; what is finished can do without it."""


class StoppedError(KeyboardInterrupt):
    """A signal asked the command to stop; all that is finished is saved. Commands exit 75 on it, 130 after Ctrl-C."""


class WorkerKilledError(Exception):
    """A process of ours was killed from outside; the message says what to do, in one line. Commands exit 1 on it."""


class StorageError(Exception):
    """A disk failed to read what is there; the message says so in one line. Commands exit 1 on it.

    No OSError, which also a damaged or vanished file raises: such an input is counted, a failing disk ends the stage.
    """


def spelled(text: str) -> str:
    """A text with what UTF-8 cannot hold spelled out: bytes of a file's name, as ``\\xe9``, and lone surrogates."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()


def utf8_fault(text: str) -> str | None:
    """What is wrong with a text that UTF-8, and so a manifest, cannot hold, and what to do; None: nothing."""
    if (escaped := spelled(text)) == text:
        return None
    return (
        f"{escaped} is not UTF-8: if it is a path, rename that file or folder, or give a link to it with another name"
    )


class RunError(Exception):
    """The run cannot go on; the message, one line, says why and what to do. Commands end with status 1."""
