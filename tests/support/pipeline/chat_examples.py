"""Builds of chat examples from records, in a run with a tokenizer."""

import json

import pyarrow.parquet as parquet

from configs.load import load_recipe
from configs.run_layout import RunLayout
from pipeline.examples import chat
from tests.support.pipeline.corpora import RECIPE, overrides

_numbers = iter(range(1000))


def example_options(root, records, *more, held_out=0.2):
    """The overrides for a stage of its own with these records."""
    path = root / f"records{next(_numbers)}.jsonl"
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    source = ("data.source.kind=jsonl", f"data.source.path={root / 'corpus.jsonl'}")
    examples = ("finetune.examples.kind=files", f"finetune.examples.path={path}", f"finetune.name={path.stem}")
    held = (f"finetune.examples.held_out_fraction={held_out}", "data.max_bad_fraction=0.5")
    return overrides(root, *source, *examples, *held, *more)


def build_examples(root, records, *more, **keys):
    """Build examples. Returns the manifest, all rows by source, the rejected rows, and the tokenizer."""
    recipe = load_recipe(RECIPE, example_options(root, records, *more, **keys))
    (stage,) = recipe.finetune
    published = chat.build(recipe, stage)
    folder = RunLayout.of(recipe).examples_of(stage.name)
    sides = [parquet.read_table(folder / f"{name}-00000.parquet").to_pylist() for name in ("train", "held-out")]
    rejected = folder / "rejected-00000.parquet"
    kept = parquet.read_table(rejected).to_pylist() if rejected.exists() else []
    return published, {row["source"]: row for side in sides for row in side}, kept, sides
