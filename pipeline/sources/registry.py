"""TODO: pipeline/sources/registry.py."""

from configs.schema import Recipe
from configs.schema.data import SourceSection
from pipeline.sources.base import Source


def open_source(section: SourceSection, recipe: Recipe) -> Source:
    """The source that a section of the recipe names.

    Raises:
        RequestError: there is nothing at its path.
    """
    if not section.path:
        return _made_here(section, recipe)
    return _of_files(section, section.path, recipe.data.key_of(section))


def _made_here(section: SourceSection, recipe: Recipe) -> Source:
    """Texts that every machine has, or that are made up."""
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


def _of_files(section: SourceSection, path: str, key: str) -> Source:
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
