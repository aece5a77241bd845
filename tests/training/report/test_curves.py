"""The report's curves: units, baselines, and panels for auxiliary losses."""

import math

import pytest

from artefacts.pages.figures import png
from tests.training.report.test_report import train_record
from training.report import curves


def test_loss_in_bits_per_byte():
    scale = curves.LossScale.bits_per_byte(3.0, 2.0)
    assert scale.train == pytest.approx(1 / (3 * math.log(2)))
    assert scale.validation == pytest.approx(1 / (2 * math.log(2)))
    metrics = {"train": [train_record(s, 3.0) for s in (1, 2)], "validation": [{"step": 2, "loss": 2 * math.log(2)}]}
    figure = curves.loss_figure(metrics, scale, {"bigram": 2.0, "zstd -19": 2.001})
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert "validation, last 1.000" in labels
    names = [note.xy[1] for note in figure.axes[0].texts]
    assert abs(names[0] - names[1]) > 0.05, "names of near baselines do not cover each other"
    assert png(lambda: figure).startswith(b"\x89PNG")


def test_other_losses_have_a_panel_each() -> None:
    records = [{"step": s, "mtp_1": 5.0 / s, "mtp_2": 6.0 / s, "sequence_balance": 1.0 + 1 / s} for s in range(1, 30)]
    assert curves.other_losses(records) == ["mtp_1", "mtp_2", "sequence_balance"]
    drawn = [axes for axes in curves.other_losses_figure(records).axes if axes.lines]
    assert [len(axes.lines) for axes in drawn] == [2, 2, 2]
    assert drawn[1].get_title() == "Multi-token prediction, depth 2, nats"
    assert curves.other_losses([]) == []
