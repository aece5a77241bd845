"""``python -m training compare runs``: prints the evaluations of several runs next to each other."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from artefacts import command_hints, manifest
from artefacts.errors import RequestError
from configs.command import DONE
from configs.run_layout import EVALUATION
from training.report.score_tables import runs_lines


def compare_runs(folders: Sequence[str]) -> int:
    """Print a table of the runs in these folders. Returns the exit status.

    Raises:
        RequestError: a run has no current evaluation of a language model.
    """
    runs: dict[str, Any] = {}
    inputs = {}
    for folder in map(Path, folders):
        evaluation = folder / "evaluation"
        saved = manifest.read(evaluation)
        if saved is None:
            raise RequestError(
                f"{folder} has no evaluation: run `{command_hints.make('evaluate')}` with its recipe first"
            )
        name = folder.name if folder.name not in runs else str(folder)
        runs[name] = _read(folder, evaluation / EVALUATION)
        inputs[name] = saved.inputs["tokens"]
    print("\n".join(runs_lines(runs)))
    if len(set(inputs.values())) > 1:
        print(
            "note: the runs have different validation texts or tokenizers: compare bits per byte, not the loss, and "
            "only on the same text (evaluate.texts)",
            file=sys.stderr,
        )
    return DONE


def _read(folder: Path, path: Path) -> Any:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        known = "stages" in results
    except (OSError, ValueError, TypeError) as error:
        raise RequestError(f"{path}: cannot be read ({error}): evaluate {folder} again") from None
    if not known:
        raise RequestError(f"{path}: not an evaluation of a language model by this version: evaluate {folder} again")
    return results
