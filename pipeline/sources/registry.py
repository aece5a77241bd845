"""Open the sources of a recipe."""

from configs.schema import Recipe
from configs.schema.data import SourceSection
from pipeline.sources.base import Source


def open_sources(recipe: Recipe) -> dict[str, Source]:
    """Open every source of the recipe. Returns a map from name to source.

    Raises:
        RequestError: there is nothing at a source's path.
    """
    return {name: open_source(section, recipe) for name, section in recipe.data.named_sources.items()}


def open_source(section: SourceSection, recipe: Recipe, key: str | None = None) -> Source:
    """Open the source described by a section of the recipe. ``key`` is the section's key, if it is not in ``data``.

    Raises:
        RequestError: there is nothing at its path.
    """
    if not section.path:
        return _without_path(section, recipe)
    return _with_path(section, section.path, key or recipe.data.key_of(section))


def _without_path(section: SourceSection, recipe: Recipe) -> Source:
    """Open a source that doesn't read from a path: Python's documentation, or synthetic documents."""
    if section.kind == "pydocs":
        from pipeline.sources.pydocs import PydocsSource

        return PydocsSource.of(section, recipe)
    if section.kind == "patterns":
        from pipeline.sources.synthetic.patterns import PatternsSource

        return PatternsSource(
            section.documents, section.min_chars, section.max_chars, section.largest_step, recipe.run.seed
        )
    from pipeline.sources.synthetic.sequences import SequencesSource

    return SequencesSource(
        section.documents, section.min_chars, section.max_chars, section.symbols, section.task, recipe.run.seed
    )


def _with_path(section: SourceSection, path: str, key: str) -> Source:

    if section.kind == "parallel":
        from pipeline.sources.parallel import ParallelSource

        return ParallelSource(path, str(section.target_path), section.encoding, key=key)
    if section.kind == "hub":
        from pipeline.sources.hub import HubSource

        return HubSource(path, section.text_field, section.split, section.config, section.revision, key=key)
    if section.kind == "text":
        from pipeline.sources.text import TextSource

        return TextSource(
            path,
            section.chunk_chars,
            section.chunk,
            section.chunk_overlap,
            section.merge,
            section.encoding,
            key=key,
        )
    if section.kind == "openwebtext":
        from pipeline.sources.openwebtext import OpenWebTextSource

        return OpenWebTextSource(path, key=key)
    if section.kind == "parquet":
        from pipeline.sources.parquet import ParquetSource

        return ParquetSource(path, section.text_field, section.target_field, key=key)
    if section.kind == "csv":
        from pipeline.sources.csv import CsvSource

        return CsvSource(path, section.text_field, section.encoding, section.delimiter, section.target_field, key=key)
    from pipeline.sources.jsonl import JsonlSource

    return JsonlSource(path, section.text_field, section.encoding, section.target_field, key=key)
