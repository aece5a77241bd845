"""``python -m training report``: writes the run's report page, and its loss curve as an image for a README."""

import sys
from functools import partial

from artefacts import atomic
from artefacts.pages.figures import png
from configs.checks import run_weights
from configs.command import DONE
from configs.run_layout import RunLayout
from configs.schema import Recipe
from training.report.curves import NATS, LossScale, loss_figure
from training.report.evaluation_sections import baselines
from training.report.page import build_page
from training.report.run_files import RunFiles, read_run


def report(recipe: Recipe) -> int:
    """Write ``report.html`` and, if pretraining has logged anything, ``report-loss.png``. Returns the exit status.

    Raises:
        RequestError: there is nothing to report, or a file is damaged.
    """
    layout = RunLayout.of(recipe)
    run = read_run(recipe)
    for line in [*run_weights.unfinished(layout), *run_weights.outdated(layout)]:
        print(line, file=sys.stderr)
    atomic.write_text(layout.report, build_page(run))
    print(layout.report)
    if run.pretrain_metrics:
        picture = layout.report.with_name("report-loss.png")
        atomic.write_bytes(picture, loss_picture(run))
        print(picture)
    return DONE


def loss_picture(run: RunFiles) -> bytes:
    """Draw the pretraining loss as a PNG: in bits per byte with baselines, or in nats if the text's size is unknown."""
    train, validation = run.bytes_per_token("train"), run.bytes_per_token("validation")
    if train is None:
        return png(partial(loss_figure, run.pretrain_metrics, NATS))
    scale = LossScale.bits_per_byte(train, validation or train)
    return png(partial(loss_figure, run.pretrain_metrics, scale, baselines(run)))
