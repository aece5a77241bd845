"""Split chunks (runs of characters without whitespace) into words by separating punctuation and contractions.

The method follows spaCy's rule-based tokenizer (https://spacy.io/usage/linguistic-features#how-tokenizer-works). Marks
are split off both ends in turn, until none are left or a known chunk remains. The rest is a single word if it
looks like a web address; otherwise it is split at marks between letters. Finally, adjacent words that form a known
chunk are joined. Letters and symbols are recognized by their Unicode category, whereas spaCy lists the characters of
some scripts.
"""

import re
import sys
import unicodedata
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from pipeline.cleaning.english_exceptions import exceptions

_MARKS = "…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪"
_QUOTES = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉⟦⟧"
_CURRENCY = "$£€¥฿₽﷼₴₠₡₢₣₤₥₦₧₨₩₪₫₭₮₯₰₱₲₳₵₶₷₸₹₺₻₼₾₿"
_UNITS = (
    "km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb oz m/s km/h kmh mph hPa Pa "
    "mbar mb MB kb KB gb GB tb TB T G M K % км км² км³ м м² м³ дм дм² дм³ см см² см³ мм мм² мм³ нм кг г мг м/с км/ч "
    "кПа Па мбар Кб КБ кб Мб МБ мб Гб ГБ гб Тб ТБ тб"
)
#: Marks that are always split off at both ends, one by one, plus the period.
_ENDS = (_MARKS + _QUOTES).replace("…", "") + "."
_DIGITS = "0123456789"
_GENITIVES = ("'s", "’s")
_LETTER = r"[^\W\d_]"
#: Chunks longer than this are data, not text, and count as one word.
_LONGEST = 4096


def _class(characters: str) -> str:
    return "[" + "".join(re.escape(c) for c in characters) + "]"


class _Rules(NamedTuple):
    """The rules for where to split a chunk.

    Attributes:
        marks: characters that are always split off at the front.
        front: other prefixes that are split off.
        unit: units and other suffixes that are split off after a digit.
        stopped: characters after which a final period is split off.
        between: marks between letters or digits at which the chunk is split.
        address: a web address, which is not split.
        final: characters that are always split off at the end.
    """

    marks: frozenset[str]
    front: re.Pattern[str]
    unit: re.Pattern[str]
    stopped: re.Pattern[str]
    between: re.Pattern[str]
    address: re.Pattern[str]
    final: frozenset[str]


@lru_cache(maxsize=1)
def _rules() -> _Rules:
    characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    icons = "".join(c for c in characters if unicodedata.category(c) == "So" and c != "↔")
    # re searches a class with characters beyond U+FFFF one character at a time, so those get their own class.
    near = "".join(c for c in icons if c <= "\uffff")
    far = rf"(?=[\U00010000-\U0010ffff]){_class(icons[len(near) :])}"
    upper = _class("".join(c for c in characters if c.isupper() and c <= "\uffff"))
    lower = rf"(?!{upper}){_LETTER}"
    lower_behind = rf"(?<={_LETTER})(?<!{upper})"
    units = "|".join(re.escape(unit) for unit in _UNITS.split())
    host = r"(?:[A-Za-z0-9¡-\uffff](?:[A-Za-z0-9¡-\uffff_-]{0,62}[A-Za-z0-9¡-\uffff])?\.)+"
    return _Rules(
        marks=frozenset("§%=—–" + _MARKS + _QUOTES + _CURRENCY + icons),
        front=re.compile(r"\.\.+|\+(?![0-9])|US\$|C\$|A\$"),
        unit=re.compile(rf"(?<=[0-9])(?:\+|US\$|C\$|A\$|{_class(_CURRENCY)}|{units})$"),
        stopped=re.compile(rf"(?:{_class(_DIGITS + '%²-+|' + _MARKS + _QUOTES)}|{lower}|{upper}{{2}})\Z"),
        between=re.compile(
            # Most characters fail this first condition, which is fast to check.
            rf"(?={_class('.…+-*^,–—~:<>=/' + near)}|[\U00010000-\U0010ffff])"
            rf"(?:\.\.+|…|{_class(near)}|{far}|(?<=[0-9])[+\-*^](?=[0-9-])"
            rf"|(?:{lower_behind}|(?<={_class(_QUOTES)}))\.(?={upper}|{_class(_QUOTES)})"
            rf"|(?<={_LETTER}),(?={_LETTER})"
            rf"|(?<=[^\W_])(?:---|--|——|[-–—~])(?={_LETTER})|(?<=[^\W_])[:<>=/](?={_LETTER}))"
        ),
        address=re.compile(
            r"(?:[\w+\-.]{2,}://)?(?:\S+(?::\S*)?@)?"
            rf"(?:[0-9]{{1,3}}(?:\.[0-9]{{1,3}}){{3}}|{host}(?:{lower}){{2,63}})(?::\d{{2,5}})?(?:[/?#]\S*)?"
        ),
        final=frozenset("—–" + _MARKS + _QUOTES + icons),
    )


def _takes_stop(core: str) -> bool:
    """Return whether a period after this core is a separate word, unlike the period after an initial."""
    if max(core[-2:]) > "\uffff":
        # The checks below don't cover these characters, so leave the decision to the full rules.
        return False
    return core[-1].islower() or core[-1] in _DIGITS or (len(core) > 1 and all(map(str.isupper, core[-2:])))


def _is_number(core: str) -> bool:
    """Return whether the core consists of digits, commas and single periods."""
    return core.replace(",", "").replace(".", "").isdecimal() and ".." not in core


class Splitter:
    """Splits chunks into words."""

    def __init__(self) -> None:
        self._rules = _rules()
        self._exceptions: dict[str, list[str]] = {}
        # The words that a known chunk would be split into -> the chunk. Adjacent words like these are joined again.
        self._joins: dict[tuple[str, ...], str] = {}
        # First word of such a sequence -> length of the longest sequence that begins with it.
        self._most: dict[str, int] = {}
        known = exceptions()
        # Known chunks without the marks at their ends. Splitting marks off any other word never yields a known chunk.
        self._cores = frozenset(chunk.strip(_ENDS) for chunk in known)
        for chunk in known:
            if len(parts := self._split(chunk)) > 1:
                self._joins[tuple(parts)] = chunk
                self._most[parts[0]] = max(self._most.get(parts[0], 0), len(parts))
        # The first two words of each such sequence.
        self._pairs = frozenset(parts[:2] for parts in self._joins)
        self._exceptions = known

    def split(self, chunk: str) -> list[str]:
        """Split a chunk, which contains no whitespace, into words. Concatenating the words gives the chunk."""
        known = self._exceptions.get(chunk)
        if known is not None:
            return known
        if chunk.isalpha() or len(chunk) > _LONGEST:
            return [chunk]
        return self._common(chunk) or self._join(self._split(chunk))

    def _common(self, chunk: str) -> list[str] | None:
        """Split a chunk quickly if it is a word or number between marks. Returns None for all other chunks."""
        core = chunk.strip(_ENDS)
        if core in self._cores:
            return None
        front, _, behind = chunk.partition(core)
        stops = behind.count(".")
        if "." in front or stops > 1 or (stops and not _takes_stop(core)):
            return None
        if core.isalpha() or _is_number(core):
            words = [*front, core, *behind]
        elif core.endswith(_GENITIVES) and (word := core[:-2]).isalpha() and word not in self._cores:
            words = [*front, word, core[-2:], *behind]
        elif "-" in core and all(map(str.isalpha, core.split("-"))):
            words = [*front, *core.replace("-", " - ").split(), *behind]
        else:
            return None
        return words if len(words) < 3 else self._join(words)

    def _split(self, chunk: str) -> list[str]:
        fronts: list[str] = []
        ends: list[str] = []
        while chunk and chunk not in self._exceptions and not chunk.isalpha():
            front = self._front(chunk)
            if front and chunk[front:] in self._exceptions:
                fronts.append(chunk[:front])
                chunk = chunk[front:]
                break
            end = front + self._kept(chunk[front:])
            if front == 0 and end == len(chunk):
                break
            if end < len(chunk) and chunk[:end] in self._exceptions:
                ends.append(chunk[end:])
                chunk = chunk[:end]
                break
            fronts += [chunk[:front]] if front else []
            ends += [chunk[end:]] if end < len(chunk) else []
            chunk = chunk[front:end]
        middle = self._exceptions.get(chunk) or self._inside(chunk) if chunk else []
        return [*fronts, *middle, *reversed(ends)]

    def _front(self, chunk: str) -> int:
        """Return the number of characters to split off at the front."""
        if chunk[0] in self._rules.marks:
            return 1
        match = self._rules.front.match(chunk) if chunk[0] in ".+UCA" else None
        return match.end() if match else 0

    def _kept(self, chunk: str) -> int:
        """Return the chunk's length after a mark, unit or genitive is split off its end.

        If there is nothing to split off, this is the chunk's full length.
        """
        if not chunk:
            return 0
        last, size = chunk[-1], len(chunk)
        if last == ".":
            before = chunk.rstrip(".")
            if size - len(before) > 1:
                return len(before)
            return size - 1 if self._rules.stopped.search(before, max(0, len(before) - 2)) else size
        if last in self._rules.final:
            return size - 2 if chunk.endswith("……") else size - 1
        if last in "sS" and size > 1 and chunk[-2] in "'’":
            return size - 2
        # A unit has at most four characters and follows a digit.
        match = self._rules.unit.search(chunk, max(0, size - 5))
        return match.start() if match else size

    def _inside(self, chunk: str) -> list[str]:
        if chunk.isalnum():
            return [chunk]
        if "." in chunk and self._rules.address.fullmatch(chunk):
            return [chunk]
        words, start = [], 0
        for match in self._rules.between.finditer(chunk):
            if match.start() == 0:
                continue
            if match.start() > start:
                words.append(chunk[start : match.start()])
            words.append(match[0])
            start = match.end()
        if start < len(chunk):
            words.append(chunk[start:])
        return words

    def _join(self, words: list[str]) -> list[str]:
        """Join adjacent words that form a known chunk. Longer chunks are preferred, then earlier ones."""
        if self._pairs.isdisjoint(pairwise(words)):
            return words
        candidates = [
            (-size, start)
            for start, word in enumerate(words)
            for size in range(2, min(self._most.get(word, 0), len(words) - start) + 1)
            if tuple(words[start : start + size]) in self._joins
        ]
        if not candidates:
            return words
        taken: set[int] = set()
        joined: dict[int, int] = {}
        for size, start in sorted(candidates):
            if start not in taken and start - size - 1 not in taken:
                joined[start] = start - size
            taken.update(range(start, start - size))
        out, place = [], 0
        while place < len(words):
            if place in joined:
                out += self._exceptions[self._joins[tuple(words[place : joined[place]])]]
                place = joined[place]
            else:
                out.append(words[place])
                place += 1
        return out
