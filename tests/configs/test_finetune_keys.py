"""Choices of the trained part that make no sense are refused in one line that names the key."""

import pytest

from artefacts.errors import RequestError
from configs.load import dump_recipe, load_recipe
from tests.support.paths import DEMO_RECIPE

GPT = "model={family: gpt, hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 2, tie_word_embeddings: true}"
DENSE = ("train.expert_parallel=1", "train.router_bias_update_rate=0", "train.sequence_loss=0")
ROUTED = "targets: [routed_experts]"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["finetune.lora={rank: 8, alpha: 8, dora: true, targets: [routed_experts]}"], ["dora", "routed_experts"]),
        ([f"finetune.lora={{rank: 4, alpha: 8, {ROUTED}}}"], ["rank (4) is not a multiple of 8"]),
        (["finetune.lora={rank: 8, alpha: 8, targets: []}"], ["targets is empty"]),
        (["finetune.lora={rank: 8, alpha: 8, targets: [dense, dense]}"], ["targets (dense, dense)", "twice"]),
        (["finetune.lora={rank: 8, alpha: 8, targets: [mlp]}"], ["finetune.lora.targets", "'attention'", "mlp"]),
        (["finetune.lora={alpha: 8}"], ["finetune.lora.rank"]),
        (["finetune.lora={rank: 8, alpha: 8}", "finetune.freeze=[lm_head.*]"], ["freeze (lm_head.*)", "lora already"]),
        (["finetune.learning_rates={lm_head.*: 0}"], ["lm_head.* (0) must be above 0", "freeze"]),
        ([GPT, *DENSE, f"finetune.lora={{rank: 8, alpha: 8, {ROUTED}}}"],
         ["finetune.lora.targets: this model has no layers for routed experts", "attention, dense"]),
        (["model.n_shared_experts=0", "finetune.lora={rank: 8, alpha: 8, targets: [shared_experts]}"],
         ["finetune.lora.targets", "no layers for shared experts", "attention, dense, routed_experts"]),
        ([GPT, *DENSE, "finetune.reset=[head]"],
         ["finetune.reset (head)", "model.tie_word_embeddings", "name both"]),
        (["model={family: bigram}", *DENSE, "finetune.lora={rank: 8, alpha: 8}"],
         ["finetune.lora: model.family=bigram has no layers"]),
        (["model={family: bigram}", *DENSE, "finetune.reset=[head]"],
         ["finetune.reset (head): model.family=bigram has no head"]),
    ],
)  # fmt: skip
def test_errors_name_the_key(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(RequestError) as fault:
        load_recipe(DEMO_RECIPE, overrides)
    message = str(fault.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_patterns_survive_the_copy_of_a_recipe(tmp_path) -> None:
    overrides = ['finetune.learning_rates={"*.o_proj.*": 0.5, lm_head.*: 2}', "finetune.freeze=['model.layers.[01].*']"]
    recipe = load_recipe(DEMO_RECIPE, overrides)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "recipe.yaml").finetune == recipe.finetune
    assert recipe.finetune[0].learning_rates == {"*.o_proj.*": 0.5, "lm_head.*": 2}
