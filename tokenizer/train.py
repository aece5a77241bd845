"""Train a tokenizer on the cleaned documents, and publish it as the ``tokenizer`` artefact.

A SentencePiece BPE is trained on a seeded sample of the documents. Its settings are lossless: identity normalization,
no added or removed spaces, and byte fallback for characters without a piece. Every digit and every newline is a piece
of its own. Runs of spaces, as in indented code, can be a single piece.
"""

import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from artefacts import atomic, command_hints, manifest, repair_hints
from artefacts.errors import RequestError
from artefacts.manifest import Manifest
from artefacts.stage import open_stage
from configs.checks.data_guard import guard
from configs.identities import tokenizer_identity
from configs.run_layout import RunLayout
from configs.schema import Recipe
from tokenizer import special_tokens

#: Maximum length of a training text, in UTF-8 bytes. Longer documents are split, at newlines if possible.
_CHUNK_BYTES = 16_384
#: SentencePiece's marker for unknown characters. The trainer silently skips texts that contain it or are too long.
_RESERVED_CHARACTER = "\u2585"


def train(recipe: Recipe) -> Manifest | None:
    """Train and publish the tokenizer, or publish a pretrained one. Returns None if it is already up to date.

    Raises:
        RequestError: the cleaned documents are missing or damaged; the vocabulary is too large for the text or too
            small for its characters; or a pretrained tokenizer is missing or too large for the model.
    """
    if recipe.tokenizer.is_ready:
        from tokenizer import pretrained

        return pretrained.copy(recipe)
    layout = RunLayout.of(recipe)
    documents = manifest.require(layout.documents, "data")
    with open_stage(
        "tokenizer",
        layout.tokenizer,
        tokenizer_identity(recipe),
        {"documents": documents.fingerprint},
        check_replacing=guard(recipe, "tokenizer"),
    ) as stage:
        if stage.finished:
            return None
        repair_hints.check_sizes("documents", layout.documents)
        # Imported here, so that printing "up to date" does not import numpy.
        from tokenizer import characters
        from tokenizer.base import CHARACTERS_NAME, MODEL_NAME
        from tokenizer.registry import load_tokenizer
        from tokenizer.training_sample import measured, sample

        texts = sample(
            layout.documents, recipe.tokenizer.sample_bytes, recipe.run.seed, targets=recipe.targets_are_text
        )
        if recipe.tokenizer.kind == "characters":
            atomic.write_bytes(stage.work / CHARACTERS_NAME, characters.fit(layout.documents, recipe))
        else:
            chunks = [chunk for text in texts for chunk in _chunks(text)]
            atomic.write_bytes(stage.work / MODEL_NAME, _fit(chunks, recipe))
        tokenizer = load_tokenizer(stage.work)
        return stage.publish(
            counts=measured(tokenizer, texts),
            versions=manifest.versions("sentencepiece"),
            details={"vocab_size": tokenizer.vocab_size, "reserved": list(special_tokens.RESERVED)},
        )


def require(recipe: Recipe) -> Manifest:
    """Return the published tokenizer's manifest.

    Raises:
        RequestError: the tokenizer is missing, or was built with another recipe.
    """
    folder = RunLayout.of(recipe).tokenizer
    published = manifest.require(folder, "tokenizer")
    if not recipe.tokenizer.is_ready and published.identity != tokenizer_identity(recipe):
        raise RequestError(
            f"{folder} was built with another recipe (tokenizer section, run.seed, or the model's task): "
            f"run `{command_hints.make('tokenizer')}`"
        )
    return published


def outcome(published: Manifest | None, recipe: Recipe) -> str:
    """Describe in one line what ``train`` did."""
    folder = RunLayout.of(recipe).tokenizer
    if published is None:
        return f"{folder}: up to date"
    counts = published.counts
    return f"{folder}: {counts['vocab_size']:,} pieces, {counts['bytes_per_token']:.2f} bytes per token"


def _chunks(text: str) -> Iterator[str]:
    """Split a text into chunks of at most ``_CHUNK_BYTES``, preferably at newlines.

    Newlines between chunks are dropped. The character that the trainer reserves becomes a space.
    """
    lines: list[str] = []
    size = 0
    for line in text.replace(_RESERVED_CHARACTER, " ").split("\n"):
        # A character takes at most four bytes.
        for start in range(0, len(line) or 1, _CHUNK_BYTES // 4):
            part = line[start : start + _CHUNK_BYTES // 4]
            length = len(part.encode()) + 1
            if lines and size + length > _CHUNK_BYTES:
                yield "\n".join(lines)
                lines, size = [], 0
            lines.append(part)
            size += length
    if lines:
        yield "\n".join(lines)


def _fit(chunks: list[str], recipe: Recipe) -> bytes:
    """Run the trainer and return the model. Its log is not printed, but is checked for skipped texts."""
    import sentencepiece

    settings: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": recipe.tokenizer.vocab_size,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "byte_fallback": True,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
        "character_coverage": 0.9995,
        "user_defined_symbols": ["\n"],
        "control_symbols": [*special_tokens.RESERVED[1:], *special_tokens.spare(recipe.tokenizer.spare_tokens)],
        "unk_piece": special_tokens.RESERVED[special_tokens.UNKNOWN_ID],
        "unk_surface": special_tokens.RESERVED[special_tokens.UNKNOWN_ID],
        "unk_id": special_tokens.UNKNOWN_ID,
        "bos_id": -1,
        "eos_id": -1,
        "pad_id": -1,
        "max_sentence_length": 2 * _CHUNK_BYTES,
        # BPE training is sequential, and the number of threads is stored in the model.
        "num_threads": 1,
    }
    model = io.BytesIO()
    fed = [chunk for chunk in chunks if chunk]
    lines: list[str] = []
    try:
        with _native_log(lines):
            sentencepiece.SentencePieceTrainer.Train(sentence_iterator=iter(fed), model_writer=model, **settings)
    except RuntimeError as error:
        raise _explained(error, recipe) from None
    skipped = [line for line in lines if "kipped" in line]
    if skipped or not any(f"preprocessed {len(fed)} sentences" in line for line in lines):
        raise AssertionError(f"the SentencePiece trainer skipped text: {skipped[:3]}")
    return model.getvalue()


@contextmanager
def _native_log(lines: list[str]) -> Iterator[None]:
    """Capture what native code writes to file descriptor 2, independently of Python's ``sys.stderr``."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            log.seek(0)
            lines += log.read().decode(errors="replace").splitlines()


def _explained(error: RuntimeError, recipe: Recipe) -> Exception:
    text = str(error)
    size = recipe.tokenizer.vocab_size
    if most := re.search(r"too high.*<= (\d+)", text):
        return RequestError(
            f"tokenizer.vocab_size ({size}) is too large for this text: set it to at most {most[1]}, "
            "or add text (tokenizer.sample_bytes, data.source)"
        )
    if least := re.search(r"smaller than required_chars\. \d+ vs (\d+)", text):
        return RequestError(f"tokenizer.vocab_size ({size}) is too small for this text: it needs at least {least[1]}")
    return error
