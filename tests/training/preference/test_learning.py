"""A model learns to prefer the shorter of two right answers, and does not forget its pretraining."""

import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from artefacts.metrics_log import read_records
from configs.load import load_recipe
from configs.run_layout import RunLayout
from tests.support.fork_server import run_command
from tests.support.paths import CHECKOUT

RECIPE = CHECKOUT / "tests" / "end-to-end.yaml"
BEFORE = ("In short: ", "As the documentation says: ", "To put it plainly: ", "The answer is this: ")
AFTER = (" This is all it says.", " That is what it does.", " There is nothing else to know.")


def record(row: dict[str, str], generator: random.Random) -> dict[str, str]:
    """An answer, and the same answer in more words."""
    answer = row["answer"]
    longer = generator.choice(BEFORE) + answer if generator.random() < 0.5 else answer + generator.choice(AFTER)
    return {"prompt": row["question"], "chosen": answer, "rejected": longer}


# A minute: pretraining until answers to prompts are better than noise.
@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.parametrize("loss", [["sigmoid", "0.1"], ["ipo", "0.1"], ["sigmoid_norm", "5"]])
def test_held_out_pairs_are_ranked_and_pretraining_is_kept(tmp_path: Path, loss: list[str]) -> None:
    words = ["--recipe", str(RECIPE), f"run.root={tmp_path}", "launch.processes=1", "train.steps=200"]
    words += ["finetune.examples.max_examples=400", "finetune.max_length=200"]
    stage = [
        "finetune.method=dpo",
        "finetune.packing=null",
        "finetune.batch_examples=16",
        "finetune.learning_rate=1e-4",
    ]
    stage += [f"finetune.preference.loss={loss[0]}", f"finetune.preference.beta={loss[1]}"]
    layout = RunLayout.of(load_recipe(RECIPE, words[2:]))
    run_command(["pipeline", "run", *words])
    run_command(["pipeline", "examples", *words])
    run_command(["training", "pretrain", *words])
    generator, files = random.Random(0), sorted(layout.examples_of("sft").glob("[th]*.parquet"))
    records = [record(row, generator) for file in files for row in pq.read_table(file).to_pylist()]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records))
    stage += ["finetune.examples.kind=files", f"finetune.examples.path={tmp_path / 'pairs.jsonl'}"]
    run_command(["pipeline", "examples", *words, *stage])
    run_command(["training", "finetune", *words, *stage])
    measured = [r for r in read_records(layout.finetune("dpo") / "metrics.jsonl") if r["kind"] == "validation"]
    assert measured[0]["step"] == 0 and measured[0]["rewards/margin"] == 0
    assert measured[-1]["rewards/accuracy"] > 0.9 and measured[-1]["rewards/margin"] > 0
    assert measured[-1]["pretraining_loss"] < 1.05 * measured[0]["pretraining_loss"]
