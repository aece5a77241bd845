"""Turn examples into token ids and labels, and drop, cut or split those that are too long."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from artefacts.errors import spelled
from artefacts.progress import bar
from configs.schema.finetune import FinetuneSection
from pipeline.examples.conversations import Example, Messages
from tokenizer.base import Tokenizer
from tokenizer.chat_layout import UnrenderableError
from tokenizer.chat_template import IGNORED, ChatTemplate

TOO_LONG = "longer than finetune.max_length"
EXCHANGE_TOO_LONG = "a single question and answer longer than finetune.max_length"
NOTHING_LEFT = "nothing to learn in the first finetune.max_length tokens"
CUT = "cut to finetune.max_length"
SPLIT = "split to finetune.max_length"
#: The reason to count in place of more reasons than ``_MOST_REASONS``, and the longest reason in characters.
OTHER = "another reason"
_MOST_REASONS, _LONGEST_REASON = 50, 200


class Rejected(NamedTuple):
    """An example that was dropped or cut, for inspection."""

    id: str
    text: str
    reason: str


class Losses:
    """Counts of examples that were dropped or altered, by reason, and the examples themselves.

    Attributes:
        dropped: reason -> number of dropped examples.
        altered: reason -> number of examples that were cut or split.
        rejected: the examples to keep for inspection.
    """

    def __init__(self) -> None:
        self.dropped: Counter[str] = Counter()
        self.altered: Counter[str] = Counter()
        self.rejected: list[Rejected] = []
        self._reasons: set[str] = set()

    def bounded(self, reason: str) -> str:
        """Return the reason to count for a reason that may contain parts of a record or a template's own message.

        There could be as many of them as records. Long reasons are therefore shortened, and all reasons after the first
        50 distinct ones become ``OTHER``.
        """
        reason = spelled(reason)
        if len(reason) > _LONGEST_REASON:
            reason = f"{reason[: _LONGEST_REASON - 1]}…"
        if reason not in self._reasons and len(self._reasons) == _MOST_REASONS:
            return OTHER
        self._reasons.add(reason)
        return reason

    def drop(self, reason: str, example: Example) -> None:
        """Count a dropped example and keep it."""
        self.dropped[reason] += 1
        self.rejected.append(Rejected(example.source, example.shown, reason))

    def unusable(self, reason: str, where: str, record: object) -> None:
        """Keep a record that is no example. It is counted with the unreadable inputs."""
        text = json.dumps(record, ensure_ascii=False, default=str)
        self.rejected.append(Rejected(where, spelled(text), reason))

    def cut(self, example: Example) -> None:
        """Count an example that was cut, and keep it."""
        self.altered[CUT] += 1
        self.rejected.append(Rejected(example.source, example.shown, CUT))


class Row(NamedTuple):
    """A rendered example. A preference has the ids and labels of its chosen and of its rejected answer.

    Attributes:
        example: the example, or a part of it.
        origin: the complete example.
        ids: a list of token ids, or one for each answer of a preference.
        labels: the labels for each list of ids. They are not shifted.
    """

    example: Example
    origin: Example
    ids: tuple[list[int], ...]
    labels: tuple[list[int], ...]


def rendered(
    examples: Sequence[Example], template: ChatTemplate, tokenizer: Tokenizer, section: FinetuneSection, losses: Losses
) -> list[Row]:
    """Render examples. Those that cannot be rendered, and parts that are too long, are counted in ``losses``."""
    renderer = _Renderer(template, tokenizer, section, losses)
    rows: list[Row] = []
    with bar(len(examples), "example", "examples") as progress:
        for example in examples:
            try:
                rows += [*renderer.rows(example)]
            except UnrenderableError as error:
                losses.drop(losses.bounded(str(error)), example)
            progress.update()
    return rows


class _Renderer:
    """Renders examples for one stage of fine-tuning."""

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer, section: FinetuneSection, losses: Losses) -> None:
        self._template, self._tokenizer, self._losses = template, tokenizer, losses
        self._most, self._too_long = section.max_length, section.examples.too_long
        self._loss_on = section.examples.loss_on

    def rows(self, example: Example) -> Iterator[Row]:
        """Yield the rows of an example: normally one.

        Raises:
            UnrenderableError: the template cannot render it.
        """
        row = self._row(example)
        if max(map(len, row.ids)) <= self._most:
            yield row
        elif self._too_long == "cut":
            ids, labels = (tuple(part[: self._most] for part in parts) for parts in (row.ids, row.labels))
            cut = row._replace(ids=ids, labels=labels)
            # The first token is never a target.
            nothing = any(set(labels[1:]) == {IGNORED} for labels in cut.labels)
            if nothing or (len(cut.ids) > 1 and cut.ids[0] == cut.ids[1]):
                self._losses.drop(NOTHING_LEFT, example)
            else:
                self._losses.cut(example)
                yield cut
        elif self._too_long == "split" and example.rejected is None:
            parts = [*(self._text_parts(row) if example.is_text else self._conversation_parts(example))]
            if parts:
                self._losses.altered[SPLIT] += 1
            yield from parts
        else:
            self._losses.drop(TOO_LONG, example)

    def _row(self, example: Example) -> Row:
        if example.is_text:
            # As in pretraining, a text ends with the end-of-text token.
            ids = [*self._tokenizer.encode(example.answer), self._tokenizer.end_of_text_id]
            return Row(example, example, (ids,), (ids,))
        if example.rejected is None:
            ids, labels = self._template.render(example.messages, self._loss_on)
            return Row(example, example, (ids,), (labels,))
        pair = [self._template.render(messages) for messages in (example.messages, example.rejected)]
        prompt = self._template.answer_prefix(example.messages[: example.prompt])
        for ids, labels in pair:
            # Answers in the prompt are the same in both conversations, so there is nothing to prefer.
            same = len(prompt) if ids[: len(prompt)] == prompt else _common_prefix(pair[0][0], pair[1][0])
            labels[:same] = [IGNORED] * same
        return Row(example, example, tuple(ids for ids, _ in pair), tuple(labels for _, labels in pair))

    def _text_parts(self, row: Row) -> Iterator[Row]:
        """Divide a text's tokens. Parts overlap by one token, so that every token but the first is a target once."""
        (ids,) = row.ids
        for number, start in enumerate(range(0, len(ids) - 1, self._most - 1), 1):
            part = ids[start : start + self._most]
            source, text = f"{row.origin.source}, part {number}", self._tokenizer.decode(part)
            yield Row(row.origin._replace(source=source, answer=text), row.origin, (part,), (part,))

    def _conversation_parts(self, example: Example) -> Iterator[Row]:
        """Divide a conversation between questions. Each part begins with the conversation's system message."""
        system, exchanges = _exchanges(example.messages)
        number = 0
        part: Messages = []
        row: Row | None = None
        for exchange in [*exchanges, []]:
            longer = self._part(example, [*system, *part, *exchange], number + 1) if exchange else None
            if longer and len(longer.ids[0]) <= self._most:
                part, row = [*part, *exchange], longer
                continue
            if row:
                number += 1
                yield row
            part, row = exchange, self._part(example, [*system, *exchange], number + 1) if exchange else None
            if row and len(row.ids[0]) > self._most:
                self._losses.drop(EXCHANGE_TOO_LONG, row.example)
                part, row = [], None

    def _part(self, example: Example, messages: Messages, number: int) -> Row:
        questions = [message["content"] for message in messages if message["role"] == "user"]
        part = example._replace(
            source=f"{example.source}, part {number}",
            messages=messages,
            question=questions[-1],
            answer=messages[-1]["content"],
        )
        return self._row(part)._replace(origin=example)


def _exchanges(messages: Messages) -> tuple[Messages, list[Messages]]:
    """Return a conversation's system message, if any, and its pairs of a question and an answer."""
    begin = 1 if messages[0]["role"] == "system" else 0
    return messages[:begin], [messages[at : at + 2] for at in range(begin, len(messages), 2)]


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
