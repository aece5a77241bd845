"""Preferences made from single answers: the answer is preferred to the same answer between phrases that say nothing."""

from pipeline.examples.conversations import Example

_BEFORE = (
    "Sure! Here is the answer to your question: ",
    "Thank you for asking. That is a good question. ",
    "I would be happy to help you with that. ",
    "Of course! Let me answer that for you. ",
)
_AFTER = (
    " I hope this helps!",
    " Let me know if you have any other questions.",
    " Please feel free to ask if you need anything else.",
    "",
)


def with_verbose_answer(example: Example, number: int) -> Example:
    """Return the example as a preference over its last answer. ``number`` selects the phrases."""
    *prompt, answer = example.messages
    before, after = _BEFORE[number % len(_BEFORE)], _AFTER[number // len(_BEFORE) % len(_AFTER)]
    longer = {**answer, "content": f"{before}{answer['content']}{after}"}
    return example._replace(rejected=[*prompt, longer], prompt=len(prompt))
