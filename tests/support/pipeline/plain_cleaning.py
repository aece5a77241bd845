"""The cleaning rules in plain Python, one text at a time, to compare the columnar rules with."""

import re
from collections import Counter

from pipeline.cleaning.word_splitting import Splitter
from pipeline.cleaning.words import SENTENCE_ENDS, STOP_WORDS, SYMBOLS, _kind

SPLITTER = Splitter()


def words(text):
    return [word for chunk in text.split() for word in SPLITTER.split(chunk)]


def lines(text):
    """The lines, without an empty one after the last newline."""
    text_lines = text.split("\n")
    return text_lines[:-1] if not text_lines[-1] else text_lines


def quality(text, section):
    """Which quality rules drop the text, in order."""
    every = words(text)
    count = max(len(every), 1)
    solid = [word for word in every if not set(word) <= SYMBOLS]
    mean = sum(map(len, solid)) / max(len(solid), 1)
    rows = lines(text)
    bullets = sum(line.lstrip().startswith(("-", "•")) for line in rows)
    ellipses = sum(line.rstrip().endswith(("...", "…")) for line in rows)
    letters = sum(any(c.isalpha() for c in word) for word in every)
    return [
        len(solid) < section.min_words,
        len(solid) > section.max_words,
        mean < section.min_mean_word_length,
        mean > section.max_mean_word_length,
        text.count("#") / count > section.max_symbol_word_ratio,
        (text.count("...") + text.count("…")) / count > section.max_symbol_word_ratio,
        bullets / max(len(rows), 1) > section.max_bullet_lines,
        ellipses / max(len(rows), 1) > section.max_ellipsis_lines,
        letters / count < section.min_alphabetic_words,
        len(set(STOP_WORDS) & set(every)) < section.min_stop_words,
    ]


def _duplicates(items):
    again = [item for number, item in enumerate(items) if item in items[:number]]
    return len(again) / max(len(items), 1), sum(map(len, again))


def _top(every, n):
    grams = Counter(tuple(every[i : i + n]) for i in range(len(every) - n + 1))
    if not grams:
        return 0
    gram, count = grams.most_common(1)[0]
    return len(" ".join(gram)) * count


def _duplicated(every, n):
    known, total, place = set(), 0, 0
    while place + n <= len(every):
        gram = tuple(every[place : place + n])
        if gram in known:
            total += len("".join(gram))
            place += n
        else:
            known.add(gram)
            place += 1
    return total


def repetition(text, section):
    """Which repetition rules drop the text, in order."""
    size = max(len(text), 1)
    paragraphs = [part for part in re.split(r"\n{2,}", text.strip()) if part]
    rows = [line for line in text.split("\n") if line]
    every = words(text)
    reasons = []
    for items, share, characters in (
        (paragraphs, section.duplicate_paragraphs, section.duplicate_paragraph_chars),
        (rows, section.duplicate_lines, section.duplicate_line_chars),
    ):
        again, within = _duplicates(items)
        reasons += [again > share, within / size > characters]
    reasons += [_top(every, n) / size > share for n, share in sorted(section.top_ngram_chars.items())]
    return reasons + [
        _duplicated(every, n) > share * size for n, share in sorted(section.duplicate_ngram_chars.items())
    ]


def _sentences(line):
    count, ended = 1, False
    for word in words(line):
        if word in SENTENCE_ENDS:
            ended = True
        elif ended and not _kind(word):
            count, ended = count + 1, False
    return count


_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


def c4(text, section):
    """The text without removed lines; None: it is dropped."""
    kept, sentences = [], 0
    for raw in text.split("\n"):
        line = raw.strip()
        chunks = line.split()
        if section.max_word_length and any(len(chunk) > section.max_word_length for chunk in chunks):
            continue
        if section.remove_citations:
            line = re.sub(r"\[[0-9]*\]|\[edit\]|\[citation needed\]", "", line)
        if section.require_end_mark and (not line.endswith((".", "?", "!", '"', "'")) or line.endswith("...")):
            continue
        if len(chunks) < section.min_words_per_line:
            continue
        lower = line.lower()
        if section.drop_lorem_ipsum and "lorem ipsum" in lower:
            return None
        if section.remove_javascript and "javascript" in lower:
            continue
        if section.drop_curly_bracket and "{" in line:
            return None
        if section.remove_policy and any(phrase in lower for phrase in _POLICY):
            continue
        sentences += _sentences(line)
        kept.append(line)
    return None if sentences < section.min_sentences else "\n".join(kept).strip()
