"""Errors that commands report in one line."""

import errno

#: The errno values of a failing disk or network file system. They do not mean that a file is damaged.
STORAGE_FAULTS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)


class RequestError(Exception):
    """The user's request is invalid. A one-line message says what is wrong and how to fix it. The exit status is 2."""


class UnreachableError(RequestError):
    """A network service does not respond. Finished artefacts can be used without the service."""


class StoppedError(KeyboardInterrupt):
    """The command was stopped by a signal. Finished work is saved. The exit status is 75, or 130 after Ctrl-C."""


class WorkerKilledError(Exception):
    """Another program or the kernel killed a worker process. The message says what to do. The exit status is 1."""


class StorageError(Exception):
    """Reading from a disk failed. The message is one line. The exit status is 1.

    This is deliberately not an OSError, which damaged and missing files raise too. Such files are counted as
    unreadable inputs, whereas a failing disk stops the stage.
    """


def spelled(text: str) -> str:
    """Escape the characters that UTF-8 cannot encode: raw bytes of file names (as ``\\xe9``) and lone surrogates."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()


def utf8_fault(text: str) -> str | None:
    """Explain why a string cannot be encoded as UTF-8 and how to fix that, or return None if it can be encoded.

    Manifests require UTF-8.
    """
    if (escaped := spelled(text)) == text:
        return None
    return (
        f"{escaped} is not UTF-8: if it is a path, rename that file or folder, or give a link to it with another name"
    )


class RunError(Exception):
    """The run cannot continue. A one-line message gives the reason and says what to do. The exit status is 1."""
