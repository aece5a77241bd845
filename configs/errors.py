"""The one exception that a user may see: a request that cannot be met as it was made."""


class RequestError(Exception):
    """The request is wrong: one line that names the thing and the cure. Commands print it and exit with status 2."""
