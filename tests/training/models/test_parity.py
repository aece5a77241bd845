"""DeepSeek-V3 and V2 equal transformers': logits, gradients, weight conversion, counts and MTP."""

from typing import Any

import pytest
import torch

from artefacts.errors import RequestError
from configs.load import load_recipe
from configs.schema.models.deepseek import DeepseekSection
from tests.support.training.random_shapes import V2, V3, YARNS, draw
from tests.support.training.shapes import VOCAB, small
from training.export.deepseek import model_section, released_config
from training.export.weights import load_weights, released_weights
from training.models.deepseek import DeepseekForCausalLM, init_weights

transformers = pytest.importorskip("transformers")
NUMBER = 48
CONFIGURATIONS = {
    "v3": draw(V3, NUMBER, seed=3),
    "v2": draw(V2, NUMBER, seed=2, scoring_func="softmax", norm_topk_prob=False),
}
ATOL, GRADIENT_RTOL = 1e-5, 1e-4


def tokens(batch: int = 2, length: int = 40, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def build(config: DeepseekSection) -> DeepseekForCausalLM:
    """A model whose norms are not one and whose biases are not zero: routers' so uneven that some experts idle."""
    model = DeepseekForCausalLM(config, VOCAB)
    init_weights(model, 0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        for buffer in model.buffers():
            buffer.copy_(torch.randn(buffer.shape, generator=generator))
    return model


def theirs(config: DeepseekSection) -> Any:
    """transformers' model of our released configuration."""
    released = released_config(config, VOCAB)
    kind = {"deepseek_v3": "DeepseekV3", "deepseek_v2": "DeepseekV2"}[released.pop("model_type")]
    released = {key: value for key, value in released.items() if key not in ("rope_scaling", "rope_theta")}
    rope: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_type": "default"}
    if config.rope_scaling is not None:
        rope = {**rope, "rope_type": "yarn", **config.rope_scaling.model_dump()}
    built_config = getattr(transformers, f"{kind}Config")(
        **released,
        rope_parameters=rope,
        pad_token_id=None,
        attn_implementation="eager",
        experts_implementation="eager",
    )
    return getattr(transformers, f"{kind}ForCausalLM")(built_config)


def stacked(released: dict[str, torch.Tensor], config: DeepseekSection) -> dict[str, torch.Tensor]:
    """Weights on disk as transformers stacks them in memory when it loads them."""
    state = {name: tensor for name, tensor in released.items() if ".mlp.experts." not in name}
    for layer in range(config.first_k_dense_replace, config.num_hidden_layers):
        name = f"model.layers.{layer}.mlp.experts"
        experts = range(config.n_routed_experts)
        gates, ups, downs = (
            [released[f"{name}.{i}.{part}_proj.weight"] for i in experts] for part in ("gate", "up", "down")
        )
        state[f"{name}.gate_up_proj"] = torch.stack([torch.cat(pair) for pair in zip(gates, ups, strict=True)])
        state[f"{name}.down_proj"] = torch.stack(downs)
    return state


def carry(ours: DeepseekForCausalLM, config: DeepseekSection) -> Any:
    """Our weights over their names on disk into transformers' model; nothing is left over or missing."""
    other = theirs(config)
    left = other.load_state_dict(stacked(dict(released_weights(ours)), config), strict=False)
    assert not left.unexpected_keys
    # Tied heads are once on disk; a shared expert of width 0 has only empty tensors, with mlp_bias a bias of zeros.
    missing = {key: other.state_dict()[key] for key in left.missing_keys if key != "lm_head.weight"}
    assert all("shared_experts" in key and not value.any() for key, value in missing.items())
    assert not missing or config.n_shared_experts == 0
    assert ("lm_head.weight" in left.missing_keys) is config.tie_word_embeddings
    return other


def compare(ours: DeepseekForCausalLM, other: Any, config: DeepseekSection) -> None:
    ids = tokens()
    logits, expected = ours(ids), other(input_ids=ids).logits
    torch.testing.assert_close(logits, expected, atol=ATOL, rtol=0)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5)) / logits.numel() ** 0.5
    (logits * weights).sum().backward()
    (expected * weights).sum().backward()
    gradients = dict(other.named_parameters())
    for key, parameter in ours.named_parameters():
        assert parameter.grad is not None, key
        if config.num_experts_per_tok == 1 and config.norm_topk_prob and key.endswith("mlp.gate.weight"):
            # One expert of weight one whatever its score: the gradient is zero, and both give what rounding leaves.
            assert max(parameter.grad.norm(), gradients[key].grad.norm()) < 1e-6
            continue
        far = (parameter.grad - gradients[key].grad).norm()
        assert far <= GRADIENT_RTOL * gradients[key].grad.norm(), (key, float(far))


@pytest.mark.parametrize("every", [pytest.param(4, id="sample"), pytest.param(1, id="all", marks=pytest.mark.slow)])
@pytest.mark.parametrize("release", CONFIGURATIONS)
def test_parity_over_random_configurations(release: str, every: int, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = range(0, NUMBER, every)
    for number in chosen:
        config = CONFIGURATIONS[release][number]
        ours = build(config)
        try:
            compare(ours, carry(ours, config), config)
        except AssertionError as error:
            raise AssertionError(f"configuration {number}: {config}") from error
    with capsys.disabled():
        print(f"\nparity with transformers: {len(chosen)} configurations of {release}")


@pytest.mark.parametrize("release", CONFIGURATIONS)
def test_parity_of_loading(release: str) -> None:
    for config in CONFIGURATIONS[release][:8]:
        other = theirs(config)
        for name, buffer in other.named_buffers():
            if "bias" in name:
                buffer.normal_()
        split: list[tuple[str, torch.Tensor]] = []
        for name, tensor in other.state_dict().items():
            if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
                split += [(name, tensor)] if tensor.numel() else []
                continue
            stem, _, kind = name.rpartition(".")
            for expert, rows in enumerate(tensor):
                halves = zip(("gate_proj", "up_proj"), rows.chunk(2), strict=True) if "gate" in kind else [(kind, rows)]
                split += [(f"{stem}.{expert}.{part}.weight", half) for part, half in halves]
        ours = DeepseekForCausalLM(config, VOCAB)
        load_weights(ours, split)
        torch.testing.assert_close(ours(tokens()), other(input_ids=tokens()).logits, atol=ATOL, rtol=0)


@pytest.mark.parametrize("release", CONFIGURATIONS)
def test_parity_of_configuration_both_ways(release: str) -> None:
    for config in CONFIGURATIONS[release]:
        assert model_section(released_config(config, VOCAB)) == config.model_copy(update={"vocab_size": VOCAB})


def test_configurations_of_other_programs() -> None:
    """The current form of transformers, nulls, and what is refused."""
    config = CONFIGURATIONS["v3"][0].model_copy(update={"rope_scaling": YARNS["uneven"], "rope_theta": 50_000.0})
    released = released_config(config, VOCAB)
    today = {key: value for key, value in released.items() if key not in ("rope_scaling", "rope_theta")}
    scaling = {"rope_type": "yarn", "rope_theta": 50_000.0, **YARNS["uneven"].model_dump()}
    section = model_section({**today, "rope_parameters": scaling})
    assert section == config.model_copy(update={"vocab_size": VOCAB})
    assert model_section({**released, "n_shared_experts": None}).n_shared_experts == 0
    for change, words in (
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "linear"),
        ({"hidden_size": None}, "hidden_size"),
    ):
        with pytest.raises(RequestError, match=words):
            model_section({**released, **change})


def test_parity_of_multi_token_prediction() -> None:
    """Hidden states of each depth are those of transformers' MTP layers with the same weights."""
    from transformers.modeling_layers import MtpModel

    config = small(num_nextn_predict_layers=2, q_lora_rank=24, first_k_dense_replace=0)
    ours = build(config).eval()
    main = theirs(config).eval()
    main.load_state_dict(stacked(dict(released_weights(ours)), config), strict=False)
    mtp = MtpModel(main, 2).eval()
    state = dict(ours.state_dict())
    for depth in range(2):
        prefix = f"model.layers.{config.num_hidden_layers + depth}."
        layer_state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        renamed = {
            (name if name.split(".")[0] in ("enorm", "hnorm", "eh_proj") else f"mtp_block.{name}").replace(
                "mtp_block.shared_head.norm", "post_norm"
            ): value
            for name, value in layer_state.items()
        }
        mtp.layers[depth].load_state_dict(renamed, strict=True)
    ids = tokens()
    hidden = expected = ours.hidden(ids)
    rope = ours.model.rotary_table(torch.arange(ids.shape[1]))
    places = torch.arange(ids.shape[1])[None]
    for depth, layer in enumerate(ours.prediction_layers):
        ahead = ids.roll(-depth - 1, dims=1)
        hidden = layer.predict(hidden, ours.model.embed_tokens(ahead), rope)
        expected = mtp.forward_layer(depth, expected, places, None, input_ids=ahead)
        torch.testing.assert_close(hidden, expected, atol=ATOL, rtol=0)


@pytest.mark.parametrize(
    ("recipe", "parameters", "router_biases"),
    [("deepseek-v3", 671_026_404_352, 14_848), ("deepseek-v2-lite", 15_706_484_224, 0)],
)
def test_parity_of_counts_at_full_size(recipe: str, parameters: int, router_biases: int) -> None:
    config = load_recipe(f"configs/{recipe}.yaml").model.model_copy(update={"num_nextn_predict_layers": 0})
    vocab_size = config.vocab_size
    assert vocab_size is not None
    with torch.device("meta"):
        ours = DeepseekForCausalLM(config, vocab_size)
        released = {**released_config(config, vocab_size)}
        kind = transformers.DeepseekV3ForCausalLM if router_biases else transformers.DeepseekV2ForCausalLM
        for key in ("rope_scaling", "model_type"):
            released.pop(key)
        other = kind(kind.config_class(**released))
    for model in (ours, other):
        assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert sum(buffer.numel() for buffer in ours.buffers()) == router_biases
    assert [tuple(p.shape) for _, p in sorted(ours.named_parameters())] == [
        tuple(p.shape) for _, p in sorted(other.named_parameters())
    ]
