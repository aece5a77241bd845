"""Language identification with langid (Lui and Baldwin 2012), as packaged in py3langid."""

import difflib
import importlib
from collections.abc import Collection
from functools import partial
from typing import Any

import numpy as np
import pyarrow

from artefacts.errors import RequestError
from pipeline.cleaning.column import Fault

#: Only this many characters at the beginning of a text are classified.
_CLASSIFIED_CHARS = 2048


class Languages:
    """Finds texts that are not in the wanted languages."""

    def __init__(self, wanted: Collection[str], least: float) -> None:
        """Load the model.

        Args:
            wanted: ISO 639-1 codes.
            least: minimum probability of a text's language.

        Raises:
            RequestError: py3langid is not installed or does not know one of the languages.
        """
        try:
            langid: Any = importlib.import_module("py3langid.langid")
            self._model = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
        except (ImportError, AttributeError):
            raise RequestError("data.clean.languages needs py3langid: pip install 'py3langid>=0.4'") from None
        if unknown := sorted(set(wanted) - set(self._model.nb_classes)):
            known = [str(code) for code in self._model.nb_classes]
            near = ", ".join(sorted(known, key=partial(_distance, unknown[0].lower()))[:3])
            raise RequestError(
                f"data.clean.languages: {unknown[0]!r} is not one of the {len(known)} ISO 639-1 codes that py3langid "
                f"knows; the nearest are {near}"
            )
        self._wanted, self._least = frozenset(wanted), least

    def faults(self, texts: pyarrow.LargeStringArray) -> list[Fault]:
        """Return two faults: texts in other languages, and texts whose language is uncertain."""
        results = [self._model.classify(text[:_CLASSIFIED_CHARS]) for text in texts.to_pylist()]
        other = np.array([language not in self._wanted for language, _ in results], bool)
        doubtful = np.array([score < self._least for _, score in results], bool)
        return [
            Fault("a language that is not in data.clean.languages", other),
            Fault("language less certain than data.clean.min_language_score", doubtful),
        ]


def _distance(wanted: str, code: str) -> tuple[float, ...]:
    """Return a sort key that orders codes by similarity to ``wanted``. Prefixes of ``wanted`` come first."""
    return not wanted.startswith(code), -difflib.SequenceMatcher(None, wanted, code).ratio()
