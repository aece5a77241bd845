"""The DeepSeek model: equal to transformers' at random weights, and what the engine relies on."""

from typing import Any

import pytest
import torch

from configs.schema.model import ModelSection
from tests.training.shapes import SHAPES, VOCAB, small
from training.models.deepseek import DeepseekForCausalLM, init_weights


def build(config: ModelSection, seed: int = 0) -> DeepseekForCausalLM:
    model = DeepseekForCausalLM(config, VOCAB)
    init_weights(model, seed)
    return model


def tokens(batch: int = 2, length: int = 40, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def disturb(model: DeepseekForCausalLM) -> None:
    """Norm weights away from one, and biases so uneven that some experts get everything and some nothing."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        for buffer in model.buffers():
            buffer.copy_(torch.randn(buffer.shape, generator=generator))


def reference(config: ModelSection) -> Any:
    transformers = pytest.importorskip("transformers")
    fields = config.model_dump(exclude={"family", "vocab_size", "rope_scaling", "rope_theta"})
    rope: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_type": "default"}
    if config.rope_scaling is not None:
        rope = {**rope, "rope_type": "yarn", **config.rope_scaling.model_dump()}
    theirs = transformers.DeepseekV3Config(
        **fields,
        vocab_size=VOCAB,
        rope_parameters=rope,
        num_key_value_heads=config.num_attention_heads,
        pad_token_id=None,
        attn_implementation="eager",
        experts_implementation="eager",
    )
    return transformers.DeepseekV3ForCausalLM(theirs)


@pytest.mark.parametrize("name", SHAPES)
def test_equals_transformers(name: str) -> None:
    config = SHAPES[name]
    ours, theirs = build(config), reference(config)
    disturb(ours)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ids = tokens()
    logits, expected = ours(ids), theirs(input_ids=ids).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5)) / logits.numel() ** 0.5
    (logits * weights).sum().backward()
    (expected * weights).sum().backward()
    gradients = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        assert parameter.grad is not None, key
        torch.testing.assert_close(parameter.grad, gradients[key].grad, atol=1e-5, rtol=1e-5, msg=key)


@pytest.mark.parametrize("name", ["plain", "tied"])
def test_loads_a_state_dict_of_transformers(name: str) -> None:
    theirs = reference(SHAPES[name])
    ours = DeepseekForCausalLM(SHAPES[name], VOCAB)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    torch.testing.assert_close(ours(tokens()), theirs(input_ids=tokens()).logits, atol=1e-5, rtol=1e-5)


def test_position_sees_only_the_past() -> None:
    model = build(SHAPES["groups"]).eval()
    ids = tokens(1, 20)
    changed = ids.clone()
    changed[0, 12:] = (changed[0, 12:] + 1) % VOCAB
    torch.testing.assert_close(model(ids)[0, :12], model(changed)[0, :12])
    assert not torch.allclose(model(ids)[0, 12:], model(changed)[0, 12:])


@pytest.mark.parametrize("name", ["groups", "no_dense_layer"])
def test_checkpointing_changes_nothing(name: str) -> None:
    plain, kept = build(SHAPES[name]), build(SHAPES[name])
    kept.set_checkpointing("full")
    for model in (plain, kept):
        model(tokens()).square().mean().backward()
    for (key, one), other in zip(plain.named_parameters(), kept.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=key, atol=0, rtol=0)


def test_recomputation_reuses_the_routing_of_the_forward_pass() -> None:
    plain, kept = build(SHAPES["groups"]), build(SHAPES["groups"])
    kept.set_checkpointing("full")
    for model in (plain, kept):
        loss = model(tokens()).square().mean()
        gate = model.model.layers[1].mlp.gate
        gate.e_score_correction_bias.copy_(torch.arange(8.0))  # a choice made now would be another one
        loss.backward()
    for (key, one), other in zip(plain.named_parameters(), kept.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=key, atol=0, rtol=0)


def test_checkpointing_recomputes_in_training_only() -> None:
    model = build(small())
    calls = []
    model.model.layers[1].mlp.gate.register_forward_hook(lambda *_: calls.append(1))
    model.set_checkpointing("full")
    model(tokens()).mean().backward()
    assert len(calls) == 2
    model.eval()
    model(tokens()).mean().backward()
    assert len(calls) == 3
    model.train().set_checkpointing("none")
    model(tokens()).mean().backward()
    assert len(calls) == 4


def test_weights_follow_the_seed_and_the_name_alone() -> None:
    one, same, other = build(small(), 7).state_dict(), build(small(), 7).state_dict(), build(small(), 8).state_dict()
    deeper = build(small(num_hidden_layers=3), 7).state_dict()
    for key, value in one.items():
        assert torch.equal(value, same[key]) and torch.equal(value, deeper[key])
        drawn = value.dim() > 1
        assert torch.equal(value, other[key]) is not drawn
        if drawn:
            assert abs(value.std().item() / 0.1 - 1) < 0.25 and abs(value.mean().item()) < 0.02
        else:
            assert torch.all(value == (0.0 if "bias" in key else 1.0))


def test_bf16_weights_are_the_rounded_fp32_ones() -> None:
    narrow = DeepseekForCausalLM(small(), VOCAB).to(torch.bfloat16)
    init_weights(narrow, 0)
    for value, expected in zip(narrow.parameters(), build(small()).parameters(), strict=True):
        assert torch.equal(value, expected.to(torch.bfloat16))


@pytest.mark.parametrize("name", ["groups", "yarn", "odd_widths"])
def test_bf16_is_close_to_fp32(name: str) -> None:
    model = build(SHAPES[name])
    exact = model(tokens())
    rounded = model.to(torch.bfloat16)(tokens())
    assert rounded.dtype == torch.bfloat16
    # A near-tie may route one token elsewhere, so the bound is on the mean and not on the largest difference.
    assert (rounded.float() - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_meta_device_then_materialised() -> None:
    with torch.device("meta"):
        model = DeepseekForCausalLM(small(), VOCAB)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    init_weights(model, 0)
    assert model.model.layers[1].mlp.gate.e_score_correction_bias.dtype == torch.float32
    assert torch.isfinite(model(tokens()).float()).all()


def test_config_reads_as_autoep_reads_it() -> None:
    config = build(SHAPES["groups"]).config
    wanted = {"n_routed_experts": 8, "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2, "hidden_act": "silu"}
    assert {key: getattr(config, key) for key in wanted} == wanted
    assert (config.norm_topk_prob, config.routed_scaling_factor, config.vocab_size) == (True, 1.5, VOCAB)
