"""Instruction files: JSON lines, or one JSON array, with instruction/input/output or messages.

Optional fields can be null.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.sources import signatures
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.storage import files
from pipeline.sources.storage.digests import SourceDigests
from pipeline.sources.storage.files import File

Messages = list[dict[str, str]]

_ROLES = ("system", "user", "assistant")

#: The supported file formats, for messages.
FORMATS = (
    "use JSON lines (.jsonl, .ndjson) or one JSON array (.json) of records with instruction, output and optionally "
    "input, or with messages that have role and content"
)
#: Prefix of a reason -> what to do about such records.
HINTS = {
    **signatures.HINTS,
    "unreadable file": "download these files of finetune.examples.path again, or repair or remove them",
    "invalid UTF-8": "save the files of finetune.examples.path as UTF-8",
    "malformed ": f"check finetune.examples.path: {FORMATS}",
    "not a JSON object": f"check finetune.examples.path: {FORMATS}",
    "neither messages": "add these fields to every record of finetune.examples.path",
    **dict.fromkeys(
        ("instruction is ", "input is ", "output is ", "a message's "),
        "make these fields text in every record of finetune.examples.path, or remove those records",
    ),
}


def fingerprints(path: str, digests: SourceDigests) -> dict[str, str]:
    """Return the fingerprint of the files in ``finetune.examples.path``.

    Raises:
        RequestError: there are no files.
    """
    return {"files": digests.of("files", find(path))}


def find(path: str) -> dict[str, File]:
    """Return the files in ``finetune.examples.path``.

    Raises:
        RequestError: there are none.
    """
    return files.find(path, (".jsonl", ".ndjson", ".json"), "finetune.examples.path")


def conversations(
    paths: dict[str, File], normalized: Callable[[str], str], bad: BadInputs
) -> Iterator[tuple[str, Messages]]:
    """Yield (location, messages) for each usable record, in order. Count the others in ``bad``.

    ``normalized`` is applied to every text.
    """
    for name, file in paths.items():
        try:
            with files.open_binary(file) as stream:
                content, damage = files.up_to_damage(stream)
            if fault := signatures.other_kind(content):
                bad.add(fault, name)
                continue
            if damage:
                bad.add("unreadable file", f"{name}: {damage}")
                content = content[: content.rfind(b"\n") + 1]
            records = list(_records(content.decode("utf-8-sig"), name, bad))
        except files.DAMAGE as error:
            bad.add("unreadable file", f"{name}: {error}")
            continue
        except UnicodeDecodeError as error:
            bad.add("invalid UTF-8", f"{name}: byte {error.start}")
            continue
        for where, record in records:
            messages = _messages(record, normalized)
            if isinstance(messages, str):
                bad.add(messages, where)
            else:
                bad.good += 1
                yield where, messages


def _records(text: str, name: str, bad: BadInputs) -> Iterator[tuple[str, Any]]:
    if text.lstrip().startswith("["):
        try:
            for number, record in enumerate(json.loads(text), 1):
                yield f"{name} record {number}", record
        except (ValueError, RecursionError) as error:
            bad.add("malformed JSON array", f"{name}: {error}")
        return
    # Don't use splitlines: it also splits at U+2028 and similar characters, which JSON strings can contain.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"{name} line {number}", json.loads(line)
            except (ValueError, RecursionError):
                bad.add("malformed line", f"{name} line {number}")


class _UnusableError(Exception):
    """Raised for an unusable record. The message is the reason."""


def _messages(record: Any, normalized: Callable[[str], str]) -> Messages | str:
    """Return a record's messages, or the reason why it is unusable."""
    if not isinstance(record, dict):
        return "not a JSON object"
    # In a file where all records have the same columns, the other format's columns are null.
    fields = {name: value for name, value in record.items() if value is not None}
    try:
        if "messages" in fields:
            return _conversation(fields["messages"], normalized)
        if "instruction" not in record or "output" not in record:
            listed = ", ".join(map(str, record)) or "none"
            return f"neither messages nor instruction and output (its fields: {listed})"
        names = ("instruction", "input", "output")
        instruction, extra, output = (
            _text(record[name] if name != "input" else fields.get(name, ""), name, normalized) for name in names
        )
    except _UnusableError as error:
        return str(error)
    for name, text in (("instruction", instruction), ("output", output)):
        if not text:
            return f"{name} is empty"
    question = f"{instruction}\n\n{extra}" if extra else instruction
    return [{"role": "user", "content": question}, {"role": "assistant", "content": output}]


def _conversation(messages: Any, normalized: Callable[[str], str]) -> Messages | str:
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return "messages is not a list of objects"
    plain = []
    for message in messages:
        for name in ("role", "content"):
            if message.get(name) is None:
                return f"a message's {name} is {'null' if name in message else 'missing'}"
        if message["role"] not in _ROLES:
            return f"a role other than {', '.join(_ROLES)}"
        plain.append({"role": message["role"], "content": _text(message["content"], "a message's content", normalized)})
    if not any(message["role"] == "assistant" and message["content"] for message in plain):
        return "no assistant message to learn from"
    return plain


#: Names, for messages, of JSON values that are not text.
_KINDS = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}


def _text(value: Any, name: str, normalized: Callable[[str], str]) -> str:
    """Return the value as normalized text.

    Raises:
        _UnusableError: the value is not text, or contains lone surrogates, which UTF-8 cannot encode.
    """
    if value is None:
        raise _UnusableError(f"{name} is null")
    if not isinstance(value, str):
        raise _UnusableError(f"{name} is {_KINDS[type(value)]}, not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _UnusableError("a lone surrogate, which is not a character") from None
    return normalized(value)
