"""``python -m training evaluate``: ``evaluation/evaluation.json`` and what it says, in a table."""

from typing import Any

from artefacts import manifest, publish
from artefacts.layout import RunLayout
from artefacts.stage import open_stage
from artefacts.training_run import finetune_is_current, finished_checkpoint, require_same_tokens
from configs import command
from configs.errors import RequestError
from configs.schema import Recipe


def evaluate(recipe: Recipe) -> int:
    """Evaluate the finished pretraining, and fine-tuning where there is one; returns the exit status."""
    layout = RunLayout.of(recipe)
    tokens = manifest.require(layout.tokens, "make data")
    pretrained = finished_checkpoint(layout.pretrain)
    require_same_tokens(layout)
    finetuned = finished_checkpoint(layout.finetune) if finetune_is_current(layout) else None
    if pretrained is None:
        raise RequestError(f"{layout.pretrain} is not finished: run `make pretrain` first")
    inputs = {"tokens": tokens.fingerprint, "pretrain": pretrained[1]}
    if finetuned is not None:
        inputs["finetune"] = finetuned[1]
        inputs["examples"] = manifest.require(layout.examples, "python -m pipeline examples").fingerprint
    identity = {
        "evaluate": recipe.evaluate.identity(),
        "generate": recipe.generate.identity(),
        "context_length": recipe.train.context_length,
    }
    with open_stage("evaluation", layout.evaluation, identity, inputs) as stage:
        if stage.finished:
            print(f"{layout.evaluation}: up to date")
        else:
            # Only here, so that "up to date" is answered without torch.
            from training.evaluate.results import evaluate_run

            results = evaluate_run(
                recipe, layout, tokens.counts["validation"], pretrained[0], finetuned and finetuned[0]
            )
            publish.write_json(stage.work / "evaluation.json", results)
            stage.publish(counts={}, versions=manifest.versions("torch", "zstandard"))
    _print(publish.read_json(layout.evaluation / "evaluation.json"))
    return command.DONE


def _print(results: dict[str, Any]) -> None:
    pretrain, baselines = results["pretrain"], results["baselines"]
    print(f"validation   {pretrain['tokens']:,} tokens, {pretrain['bytes']:,} bytes")
    print(f"  pretrained {pretrain['bits_per_byte']:.3f} bits per byte, loss {pretrain['loss']:.3f} nats a token")
    for name, row in baselines.items():
        print(f"  {name:<10} {row['bits_per_byte']:.3f} bits per byte")
    if tuned := results.get("finetune"):
        before, after = tuned["held_out_loss_before"], tuned["held_out_loss_after"]
        print(
            f"answers      {tuned['examples']} held out: loss {before:.3f} -> {after:.3f} ({after / before - 1:+.0%})"
        )
        print(f"  fine-tuned {tuned['bits_per_byte']:.3f} bits per byte on the validation text")
    worst = max((facts["max_over_mean"] for facts in results["experts"].values()), default=0.0)
    print(f"experts      busiest over mean {worst:.2f} on the validation text")
