"""The DeepSeek model's configuration, as DeepSpeed's AutoEP reads it."""

from tests.support.training.shapes import SHAPES, VOCAB
from training.models.deepseek import DeepseekForCausalLM


def test_config_has_the_names_that_autoep_reads() -> None:
    config = DeepseekForCausalLM(SHAPES["groups"], VOCAB).config
    wanted = {"n_routed_experts": 8, "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2, "hidden_act": "silu"}
    assert {key: getattr(config, key) for key in wanted} == wanted
    assert (config.norm_topk_prob, config.routed_scaling_factor, config.vocab_size) == (True, 1.5, VOCAB)
