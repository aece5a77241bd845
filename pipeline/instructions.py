"""Instruction files: JSON lines, or one JSON array, of instruction/input/output or of messages."""

import json
from collections.abc import Iterator
from typing import Any

from pipeline.bad_inputs import BadInputs
from pipeline.sources import files
from pipeline.sources.files import File

Messages = list[dict[str, str]]

_ROLES = ("system", "user", "assistant")


def find(path: str) -> dict[str, File]:
    """The files of ``finetune.examples.path``.

    Raises:
        RequestError: nothing is there.
    """
    return files.find(path, (".jsonl", ".ndjson", ".json"), "finetune.examples.path")


def conversations(found: dict[str, File], bad: BadInputs) -> Iterator[tuple[str, Messages]]:
    """(where it stands, messages) of every usable record, in order; the others are counted in ``bad``."""
    for name, file in found.items():
        try:
            with files.open_binary(file) as stream:
                records = list(_records(stream.read().decode("utf-8-sig"), name, bad))
        except files.DAMAGE as error:
            bad.add("unreadable file", f"{name}: {error}")
            continue
        except UnicodeDecodeError as error:
            bad.add("invalid UTF-8", f"{name}: byte {error.start}")
            continue
        for where, record in records:
            messages = _writable(_messages(record))
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
    # Not splitlines: JSON text may hold U+2028 and its like.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"{name} line {number}", json.loads(line)
            except (ValueError, RecursionError):
                bad.add("malformed line", f"{name} line {number}")


def _writable(messages: Messages | str) -> Messages | str:
    """The same, or why they cannot be written: escapes in JSON may spell lone surrogates, which UTF-8 cannot hold."""
    try:
        for message in messages if isinstance(messages, list) else []:
            message["content"].encode()
    except UnicodeEncodeError:
        return "a lone surrogate, which is no character"
    return messages


def _messages(record: Any) -> Messages | str:
    """Messages of a record, or why it has none."""
    if not isinstance(record, dict):
        return "not a JSON object"
    if "messages" in record:
        return _checked(record["messages"])
    instruction, extra, output = (record.get(name, "") for name in ("instruction", "input", "output"))
    if "instruction" not in record or "output" not in record:
        return f"neither messages nor instruction and output (fields there: {', '.join(map(str, record)) or 'none'})"
    if not all(isinstance(value, str) for value in (instruction, extra, output)):
        return "instruction, input or output is not text"
    if not instruction.strip() or not output.strip():
        return "empty instruction or output"
    asked = f"{instruction}\n\n{extra}" if extra.strip() else instruction
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": output}]


def _checked(messages: Any) -> Messages | str:
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return "messages is not a list of objects"
    plain = [{"role": message.get("role"), "content": message.get("content")} for message in messages]
    if any(message["role"] not in _ROLES for message in plain):
        return f"a role other than {', '.join(_ROLES)}"
    if not all(isinstance(message["content"], str) for message in plain):
        return "a message's content is not text"
    if not any(message["role"] == "assistant" and message["content"].strip() for message in plain):
        return "no assistant message to learn from"
    return plain
