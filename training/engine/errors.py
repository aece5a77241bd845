"""What ends a run without its being the request's fault."""


class RunError(Exception):
    """The run cannot go on; the message, one line, says why and what to do. Commands end with status 1."""
