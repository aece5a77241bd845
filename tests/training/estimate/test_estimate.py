"""The closed forms equal built models, PyTorch's counter and published numbers."""

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from configs.load import load_recipe
from configs.schema.models.deepseek import DeepseekSection
from tests.support.paths import DEMO_RECIPE
from tests.support.training.shapes import SHAPES, VOCAB
from training.commands.estimate import lines
from training.estimate import flops_per_token, parameters
from training.estimate.flops import attention_flops_per_token
from training.layers.cpu import attention as cpu_attention
from training.models.deepseek import DeepseekForCausalLM, init_weights

V3 = DeepseekSection(
    hidden_size=7168,
    num_hidden_layers=61,
    num_attention_heads=128,
    intermediate_size=18432,
    moe_intermediate_size=2048,
    n_routed_experts=256,
    n_shared_experts=1,
    num_experts_per_tok=8,
    n_group=8,
    topk_group=4,
    first_k_dense_replace=3,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
)
V2_LITE = DeepseekSection(
    hidden_size=2048,
    num_hidden_layers=27,
    num_attention_heads=16,
    intermediate_size=10944,
    moe_intermediate_size=1408,
    n_routed_experts=64,
    n_shared_experts=2,
    num_experts_per_tok=6,
    first_k_dense_replace=1,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
)


def built(config: DeepseekSection, vocab_size: int = VOCAB) -> DeepseekForCausalLM:
    with torch.device("meta"):
        return DeepseekForCausalLM(config, vocab_size)


@pytest.mark.parametrize("name", SHAPES)
def test_total_equals_the_built_model(name: str) -> None:
    assert parameters(SHAPES[name], VOCAB).all == sum(p.numel() for p in built(SHAPES[name]).parameters())


@pytest.mark.parametrize("name", SHAPES)
def test_active_leaves_out_idle_experts_and_the_embedding(name: str) -> None:
    config = SHAPES[name]
    active = 0
    for key, parameter in built(config).named_parameters():
        if ".experts." in key:
            active += parameter.numel() * config.num_experts_per_tok // config.n_routed_experts
        elif key != "model.embed_tokens.weight" or config.tie_word_embeddings:
            active += parameter.numel()
    assert parameters(config, VOCAB).active == active


@pytest.mark.parametrize(
    ("config", "vocab_size", "total", "active"), [(V3, 129280, 671e9, 37e9), (V2_LITE, 102400, 15.7e9, 2.4e9)]
)
def test_published_sizes(config: DeepseekSection, vocab_size: int, total: float, active: float) -> None:
    counts = parameters(config, vocab_size)
    assert counts.total == sum(p.numel() for p in built(config, vocab_size).parameters())
    assert counts.total == pytest.approx(total, rel=0.002)
    assert counts.active == pytest.approx(active, rel=0.025)


@pytest.mark.parametrize("name", SHAPES)
def test_flops_equal_those_of_the_built_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # With blocks of one query, blocked attention skips the future exactly.
    monkeypatch.setattr(cpu_attention, "QUERY_BLOCK", 1)
    batch, length = 2, 24
    model = DeepseekForCausalLM(SHAPES[name], VOCAB)
    init_weights(model, 0)
    with FlopCounterMode(display=False) as counter:
        model(torch.randint(0, VOCAB, (batch, length))).mean().backward()
    expected = flops_per_token(SHAPES[name], VOCAB, length) * batch * length
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)


def test_attention_alone_grows_with_context() -> None:
    short, long = flops_per_token(V3, 129280, 4095), flops_per_token(V3, 129280, 8191)
    assert long - short == attention_flops_per_token(V3, 4095)


def test_command_prints_the_counts() -> None:
    recipe = load_recipe(DEMO_RECIPE, [])
    counts = parameters(recipe.model, recipe.vocab_size)
    text = "\n".join(lines(recipe))
    assert f"{counts.total:,}" in text and f"{counts.active:,}" in text
    assert f"{recipe.train.steps * recipe.train.global_batch_tokens:,} tokens" in text


def test_no_torch_is_imported() -> None:
    code = "import sys, training.commands.estimate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
