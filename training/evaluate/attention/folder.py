"""Writes the folder of attention maps: heat maps, statistics, and weights."""

import io
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from artefacts import atomic
from artefacts.pages.figures import png
from artefacts.progress import bar
from training.evaluate.attention.collect import AttentionMap
from training.evaluate.attention.figures import head_figure, layer_figure


@dataclass(frozen=True)
class LabeledMap:
    """An attention map and the labels of its queries and keys."""

    map: AttentionMap
    queries: Sequence[str]
    keys: Sequence[str]

    @property
    def file(self) -> str:
        """The prefix of the map's file names."""
        kind = self.map.name.removesuffix(str(self.map.layer)).strip() or "layer"
        return f"{kind}-{self.map.layer:02d}"


def write_folder(folder: Path, maps: Sequence[LabeledMap], about: dict[str, Any]) -> None:
    """Write all files to a temporary folder, then replace ``folder`` with it.

    ``layer-NN-head-NN.png`` shows one head and ``layer-NN.png`` shows all heads of a layer. ``attention.json`` holds
    ``about``, and ``weights.npz`` contains the weights [N, T, L] of each map, keyed by the map's name.
    """
    temp = atomic.temp_path(folder)
    temp.mkdir(parents=True)
    try:
        with bar(sum(one.map.heads + 1 for one in maps), "figure", "heat maps") as progress:
            for one in maps:
                (temp / f"{one.file}.png").write_bytes(png(partial(layer_figure, one.map)))
                progress.update()
                for head in range(one.map.heads):
                    draw = partial(head_figure, one.map, head, one.queries, one.keys)
                    (temp / f"{one.file}-head-{head:02d}.png").write_bytes(png(draw))
                    progress.update()
        atomic.write_json(temp / "attention.json", about)
        weights = io.BytesIO()
        arrays: dict[str, Any] = {one.map.name: one.map.weights_NTL for one in maps}
        np.savez_compressed(weights, **arrays)
        (temp / "weights.npz").write_bytes(weights.getvalue())
        if folder.exists():
            shutil.rmtree(folder)
        atomic.rename_folder(temp, folder)
    finally:
        shutil.rmtree(temp, ignore_errors=True)
