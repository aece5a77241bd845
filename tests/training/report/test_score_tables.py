"""Tables of the results of several runs."""

from training.report.score_tables import runs_lines


def test_losses_of_answers_and_of_pairs_have_rows_of_their_own() -> None:
    facts = {"checkpoint": "step-00000004", "loss": 2.0, "bits_per_byte": 1.0, "perplexity": 7.4}
    pairs = {"accuracy": 0.75, "margin": 0.1}
    stages = {
        "sft": {**facts, "held_out_loss_after": 3.5},
        "dpo": {**facts, "held_out_loss_after": 2.5, "preferences": pairs},
    }
    results = {"stages": ["pretrain", *stages], "pretrain": facts, "finetune": stages}
    rows = dict(line.split("  ", 1) for line in runs_lines({"run": results}))
    assert rows["held-out answers loss"].split() == ["3.500"]
    assert rows["held-out chosen answers loss"].split() == ["2.500"]
    assert rows["held-out pairs preferred"].split() == ["0.750"]
