"""The formats of records for chat examples, and how a file's format is detected."""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from artefacts.errors import RequestError
from configs.schema.examples import ExamplesSection
from pipeline.examples.reading import Record

#: Number of records from which a file's format is detected.
PEEKED = 100


class Format(NamedTuple):
    """A format of records.

    Attributes:
        name: its name in ``finetune.examples.format``.
        title: what such records are called.
        fields: role -> name of the field with that role.
        optional: roles that a record need not have.
    """

    name: str
    title: str
    fields: Mapping[str, str]
    optional: frozenset[str] = frozenset()

    @property
    def required(self) -> dict[str, str]:
        """The roles and fields that every record must have."""
        inside = ("role", "content")
        return {role: name for role, name in self.fields.items() if role not in self.optional and role not in inside}

    def matches(self, record: Mapping[str, Any]) -> bool:
        """Return whether a record has all required fields, and none of them is null."""
        return all(record.get(name) is not None for name in self.required.values())

    def missing(self, record: Mapping[str, Any]) -> list[str]:
        """Return the required fields that a record does not have."""
        return [name for name in self.required.values() if name not in record]


#: All formats. If a record matches several of them, the first one counts.
FORMATS = (
    Format(
        "preference",
        "preferences",
        {
            "prompt": "prompt",
            "chosen": "chosen",
            "rejected": "rejected",
            "system": "system",
            "role": "role",
            "content": "content",
        },
        frozenset({"prompt", "system"}),
    ),
    Format(
        "messages",
        "messages",
        {"messages": "messages", "system": "system", "role": "role", "content": "content"},
        frozenset({"system"}),
    ),
    Format(
        "sharegpt",
        "ShareGPT conversations",
        {"messages": "conversations", "system": "system", "role": "from", "content": "value"},
        frozenset({"system"}),
    ),
    Format(
        "alpaca",
        "Alpaca records",
        {"prompt": "instruction", "input": "input", "answer": "output", "system": "system"},
        frozenset({"input", "system"}),
    ),
    Format(
        "prompt_completion",
        "prompts and completions",
        {"prompt": "prompt", "answer": "completion", "system": "system", "role": "role", "content": "content"},
        frozenset({"system"}),
    ),
    Format(
        "question_answer",
        "questions and answers",
        {"prompt": "question", "answer": "answer", "system": "system"},
        frozenset({"system"}),
    ),
    Format("text", "plain texts", {"text": "text"}),
)


def mapped_formats(section: ExamplesSection, key: str) -> list[Format]:
    """Return the formats that the records may have, with the field names of ``fields``.

    ``key`` is the section's key.

    Raises:
        RequestError: no format, or not the requested one, has all the roles of these fields.
    """
    names = section.field_names
    formats = [form for form in FORMATS if section.format in (None, form.name)]
    usable = [
        form._replace(fields={role: names.get(role, name) for role, name in form.fields.items()})
        for form in formats
        if names.keys() <= form.fields.keys()
    ]
    if not usable:
        roles = ", ".join(section.fields)
        if section.format:
            has = ", ".join(formats[0].fields)
            raise RequestError(f"{key}.fields: format={section.format} has the roles {has}, but not all of {roles}")
        raise RequestError(f"{key}.fields: no format has all of the roles {roles}: see docs/data.md#chat-examples")
    if names and not section.format:
        # The more general a format, the fewer fields it reads that the recipe does not name.
        usable.sort(key=lambda form: len(form.fields))
    return usable


def wanted_fields(formats: Sequence[Format]) -> frozenset[str]:
    """Return the names of all fields that these formats read."""
    return frozenset(name for form in (*formats, *FORMATS) for name in form.fields.values())


def detected(
    name: str, peeked: Sequence[Record], section: ExamplesSection, formats: Sequence[Format], key: str
) -> Format:
    """Return the format of most of a file's first records.

    Args:
        name: the file's name.
        peeked: the file's first records.
        section: the recipe's section.
        formats: the formats in question, from ``mapped_formats``.
        key: the section's key.

    Raises:
        RequestError: the records have no known format, or not the fields that the recipe names.
    """
    records = [record.value for record in peeked if isinstance(record.value, dict)]
    if not records:
        return formats[0]
    known = list(dict.fromkeys(field for record in records for field in record))
    for role, field in section.field_names.items():
        if field not in known and role not in ("role", "content"):
            raise RequestError(
                f"{key}.fields: {name} has no field {field!r}; its fields are: {_listed(known)}{_nearest(field, known)}"
            )
    votes = Counter(form.name for record in records for form in formats if form is _first_match(record, formats))
    if votes:
        (most, _), *_ = votes.most_common(1)
        return next(form for form in formats if form.name == most)
    # Required fields may be null. Such records are counted later.
    for form in formats:
        if any(not form.missing(record) for record in records):
            return form
    if section.format:
        needs = " and ".join(formats[0].required.values())
        raise RequestError(
            f"{key}.format={section.format} needs {needs}, but {name} has the fields {_listed(known)}: map them with "
            f"{key}.fields"
        )
    raise RequestError(
        f"{key}.path: the records in {name} have no known format; their fields are: {_listed(known)}: map them with "
        f"{key}.fields, such as {{prompt: question, answer: reply}}"
    )


def _first_match(record: Mapping[str, Any], formats: Sequence[Format]) -> Format | None:
    return next((form for form in formats if form.matches(record)), None)


def description(form: Format, records: Sequence[Record]) -> str:
    """Return a format's title, and the fields that these records have, as in "Alpaca records (instruction, output)"."""
    dicts = [record.value for record in records if isinstance(record.value, dict)]
    roles = [role for role in form.fields if role not in ("role", "content")]
    fields = [form.fields[role] for role in roles]
    used = [field for field in fields if any(record.get(field) is not None for record in dicts)]
    return f"{form.title} ({', '.join(used or fields)})"


def _listed(fields: Sequence[str]) -> str:
    shown = [str(field) for field in fields[:20]]
    return (", ".join(shown) or "none") + (", …" if len(fields) > 20 else "")


def _nearest(field: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(field, list(map(str, known)), 1)
    return f"; did you mean {close[0]}?" if close else ""
