"""A documents artefact of the texts of a recipe's jsonl source, as the documents stage publishes it."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet

from artefacts import fingerprint
from artefacts.stage import open_stage
from configs.run_layout import RunLayout
from configs.schema import Recipe

#: Documents per shard: few, so that a small corpus has several shards.
_SHARD = 25


def publish_documents(recipe: Recipe) -> None:
    """Publish every text of the source, cleaned or not."""
    path = Path(recipe.data.source.path)
    texts = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    inputs = {"source": fingerprint.of_file(path)}
    with open_stage("documents", RunLayout.of(recipe).documents, {}, inputs) as stage:
        if stage.finished:
            return
        for shard, first in enumerate(range(0, len(texts), _SHARD)):
            part = texts[first : first + _SHARD]
            columns = {
                "id": [f"made:{first + i}" for i in range(len(part))],
                "text": part,
                "bytes": [len(text.encode()) for text in part],
            }
            parquet.write_table(pyarrow.table(columns), stage.work / f"clean-{shard:05d}.parquet", row_group_size=10)
        stage.publish({}, {})
