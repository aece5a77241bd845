"""Errors that a command reports in one line."""

import errno

#: Error numbers of a failing disk or network file system. They say nothing about the content of a file.
STORAGE_FAULTS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)


class RequestError(Exception):
    """The request is wrong. The message says in one line what and how to fix it. Commands exit with status 2."""


class UnreachableError(RequestError):
    """A service over the network does not answer. Finished artefacts do not need it."""


class StoppedError(KeyboardInterrupt):
    """A signal requested a stop. Finished work is saved. Commands exit with status 75, after Ctrl-C with 130."""


class WorkerKilledError(Exception):
    """A worker process was killed from outside. The message says what to do. Commands exit with status 1."""


class StorageError(Exception):
    """A disk failed to read. The message says so in one line. Commands exit with status 1.

    It is not an OSError, which a damaged or missing file raises as well. Such an input is counted as unreadable; a
    failing disk ends the stage.
    """


def spelled(text: str) -> str:
    """A text with everything escaped that UTF-8 cannot encode: bytes of a file name (``\\xe9``) and lone surrogates."""
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
    """The run cannot continue. The message says in one line why and what to do. Commands exit with status 1."""
