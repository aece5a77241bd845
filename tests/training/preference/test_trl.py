"""The losses and rewards of pairs equal trl's on the same pairs and weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

from configs.schema.preference import PreferenceSection
from configs.schema.train import TrainSection
from tests.support.training.pairs import PAIRS, random_pairs, rendered, write_pairs
from tests.support.training.shapes import small
from tests.support.training.tiny_run import TRAIN
from tests.training.models.test_parity import build, carry
from training.data.preferences import PreferenceExamples
from training.models.deepseek import DeepseekForCausalLM, init_weights
from training.preference.loss import REWARDS
from training.preference.objective import LOSS, PreferenceObjective, log_probabilities

CONFIG = small()
PAD = 3


def reference_model() -> DeepseekForCausalLM:
    model = build(CONFIG)
    init_weights(model, 7)
    return model


def their_trainer(folder: Path, policy: Any, reference: Any, **arguments: Any) -> tuple[Any, Any]:
    """trl's trainer, and the batch that its collator makes of the pairs."""
    import datasets
    import tokenizers
    import transformers
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "c": 2, "pad": PAD}, unk_token="a"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="b", pad_token="pad")
    trainer = DPOTrainer(
        policy,
        reference,
        DPOConfig(
            str(folder),
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
            **arguments,
        ),
        train_dataset=datasets.Dataset.from_list([{"prompt": "a", "chosen": "a", "rejected": "c"}]),
        processing_class=tokenizer,
    )
    records = []
    for prompt, *answers in random_pairs(PAIRS, 0):
        (ids, labels), (others, other_labels) = (rendered(prompt, answer) for answer in answers)
        split = next(place for place, label in enumerate(labels) if label != -100)
        assert all(label != -100 for row in (labels, other_labels) for label in row[split:])
        records.append({"prompt_ids": ids[:split], "chosen_ids": ids[split:], "rejected_ids": others[split:]})
    return trainer, DataCollatorForPreference(pad_token_id=PAD)(records)


def ours(folder: Path, section: PreferenceSection) -> tuple[dict[str, float], DeepseekForCausalLM]:
    """Our losses on all pairs, as means, and the model with their gradients."""
    write_pairs(folder, "train", random_pairs(PAIRS, 0))
    examples = PreferenceExamples(folder, "train", PAD)
    objective = PreferenceObjective(CONFIG, TrainSection(**TRAIN), section)
    pairs = list(range(PAIRS))
    with torch.no_grad():
        logs = log_probabilities(objective, reference_model(), examples.read(pairs))
    examples.reference = logs.view(2, -1).T.numpy()
    batch, model = examples.read(pairs), build(CONFIG)
    sums, counts = objective(model, batch), objective.counts(batch)
    (sums[LOSS] / counts[LOSS]).backward()
    return {name: float(total.detach()) / counts[name] for name, total in sums.items()}, model


# Ten seconds: trl's imports.
def test_losses_gradients_and_rewards_equal_those_of_trl(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    theirs, reference = carry(build(CONFIG), CONFIG), carry(reference_model(), CONFIG)
    trainer, batch = their_trainer(tmp_path / "trl", theirs, reference)
    for name, beta in (("sigmoid", 0.1), ("ipo", 0.3), ("sigmoid_norm", 2.0)):
        trainer.beta, trainer.loss_types = beta, [name]
        theirs.zero_grad()
        loss = trainer.compute_loss(trainer.model, dict(batch))
        loss.backward()
        means, model = ours(tmp_path / name, PreferenceSection(loss=name, beta=beta))
        assert means[LOSS] == pytest.approx(loss.item(), abs=1e-5), name
        logged = trainer._metrics["train"]
        names = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
        for mine, other in zip(REWARDS, names, strict=True):
            assert means[mine] == pytest.approx(logged[other][-1], abs=1e-5), (name, mine)
        assert 0 < means["rewards/accuracy"] < 1, "the pairs must test both signs of the margin"
        torch.testing.assert_close(model.model.embed_tokens.weight.grad, theirs.model.embed_tokens.weight.grad)
        torch.testing.assert_close(model.lm_head.weight.grad, theirs.lm_head.weight.grad)
