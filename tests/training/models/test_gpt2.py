"""GPT-2 equals transformers': logits, gradients, weight conversion, counts, initial values and tokenizer."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from artefacts.errors import RequestError
from configs.load import load_recipe
from configs.schema.models.gpt import GptSection
from tests.support.tokenizers import publish_documents
from tokenizer.registry import load_tokenizer
from tokenizer.train import train
from training.estimate.parameters import parameters
from training.export.gpt2 import model_section, released_config
from training.export.weights import load_weights, released_weights
from training.inference.generate import Limits, generate, generate_batch
from training.inference.sampling import Sampling
from training.models.gpt import GptForCausalLM
from training.models.registry import build_model, init_weights

transformers = pytest.importorskip("transformers")
VOCAB = 101
ATOL, GRADIENT_RTOL = 1e-5, 1e-4
RELEASES = {
    "gpt2": (12, 12, 768, 124_439_808),
    "gpt2-medium": (24, 16, 1024, 354_823_168),
    "gpt2-large": (36, 20, 1280, 774_030_080),
    "gpt2-xl": (48, 25, 1600, 1_557_611_200),
}


def small(**changes: Any) -> GptSection:
    fields = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 160}
    return GptSection(**{**fields, "initializer_range": 0.1, **changes})


SHAPES = {
    "plain": small(),
    "as_released": small(activation="gelu_new"),
    "relu": small(activation="relu"),
    "untied": small(tie_word_embeddings=False),
    "narrow": small(intermediate_size=64, layer_norm_eps=1e-3),
    "no_biases": small(bias=False),
    "one_head": small(num_attention_heads=1, num_hidden_layers=1),
}


def tokens(length: int = 150, batch: int = 2) -> torch.Tensor:
    # Longer than a block of queries on CPU.
    return torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(1))


def build(config: GptSection, vocab_size: int = VOCAB) -> GptForCausalLM:
    """A model whose norms are not one and whose biases are not zero."""
    model = build_model(config, vocab_size)
    init_weights(model, 0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def theirs(config: GptSection, vocab_size: int = VOCAB) -> Any:
    """transformers' model of our released configuration."""
    released = released_config(config, vocab_size)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**released, attn_implementation="sdpa"))


def carry(ours: GptForCausalLM, other: Any) -> Any:
    """Our weights over their names on disk into transformers' model; nothing is left but a tied head."""
    left = other.load_state_dict(dict(released_weights(ours)), strict=False)
    assert not left.unexpected_keys
    assert left.missing_keys == (["lm_head.weight"] if ours.section.tie_word_embeddings else [])
    return other


@pytest.mark.parametrize("name", SHAPES)
def test_logits_and_gradients_equal_transformers(name: str) -> None:
    config, ids = SHAPES[name], tokens()
    ours = build(config)
    other = carry(ours, theirs(config).eval())
    logits, expected = ours(ids), other(input_ids=ids).logits
    torch.testing.assert_close(logits, expected, atol=ATOL, rtol=0)
    inputs, labels = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    loss, expected_loss = ours(inputs, [labels])["cross_entropy"], other(input_ids=ids, labels=ids).loss
    torch.testing.assert_close(loss / labels.numel(), expected_loss, atol=ATOL, rtol=0)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5)) / logits.numel() ** 0.5
    ((logits * weights).sum() + loss / labels.numel()).backward()
    ((expected * weights).sum() + expected_loss).backward()
    # Their gradients under our names: a model without biases has none for those that are zero there.
    back = build_model(config.model_copy(update={"bias": True}), VOCAB)
    load_weights(back, [(key, parameter.grad) for key, parameter in other.named_parameters()])
    gradients = dict(back.named_parameters())
    for key, parameter in ours.named_parameters():
        far = (parameter.grad - gradients[key]).norm()
        assert far <= GRADIENT_RTOL * gradients[key].norm(), (key, float(far))


@pytest.mark.parametrize("name", SHAPES)
def test_weights_round_trip_exactly(name: str) -> None:
    config = SHAPES[name]
    ours = build(config)
    other = carry(ours, theirs(config))
    again = build_model(config, VOCAB)
    load_weights(again, other.state_dict().items())
    state = again.state_dict()
    assert all(torch.equal(state[key], value) for key, value in ours.state_dict().items())
    # As the first releases have them: without the prefix, with the mask as buffers.
    old = {key.removeprefix("transformer."): value for key, value in released_weights(ours)}
    old |= {"h.0.attn.bias": torch.ones(1, 1, 8, 8), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    older = build_model(config, VOCAB)
    load_weights(older, old.items())
    assert all(torch.equal(older.state_dict()[key], value) for key, value in ours.state_dict().items())


def test_biases_that_are_not_zero_are_not_dropped() -> None:
    biased = build(small())
    with pytest.raises(RequestError, match=r"transformer\.\S+\.bias, which is not zero.*model\.bias=true"):
        load_weights(build_model(small(bias=False), VOCAB), released_weights(biased))


@pytest.mark.parametrize("name", SHAPES)
def test_configuration_both_ways(name: str) -> None:
    config = SHAPES[name].model_copy(update={"dropout": 0.2})
    back = model_section(json.loads(json.dumps(released_config(config, VOCAB))))
    assert back == config.model_copy(update={"vocab_size": VOCAB, "bias": True})


def test_configurations_of_other_programs() -> None:
    """transformers' own defaults are the smallest release; what either side lacks is refused by its key."""
    today = transformers.GPT2Config().to_dict()
    layers, heads, width, _ = RELEASES["gpt2"]
    released = GptSection(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        activation="gelu_new",
        dropout=0.1,
        vocab_size=50_257,
    )
    assert model_section(today) == model_section({"model_type": "gpt2"}) == released
    for change, words in (
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"activation_function": "silu"}, "activation_function"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"n_head": 7}, "hidden_size"),
    ):
        with pytest.raises(RequestError, match=words):
            model_section({**today, **change})
    for changes in ({"positions": "rope"}, {"window": 8}, {"norm": "rms"}, {"activation": "swiglu"}):
        with pytest.raises(RequestError, match=f"model.{next(iter(changes))}="):
            released_config(small(**changes), VOCAB)


def test_parity_at_the_size_of_gpt2() -> None:
    layers, heads, width, count = RELEASES["gpt2"]
    config = GptSection(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, activation="gelu_new")
    ours = build(config, 50_257).eval()
    assert sum(parameter.numel() for parameter in ours.parameters()) == count
    other = carry(ours, theirs(config, 50_257)).eval()
    ids = torch.randint(0, 50_257, (1, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), other(input_ids=ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", RELEASES)
def test_parameter_counts_equal_those_of_the_releases(name: str) -> None:
    layers, heads, width, count = RELEASES[name]
    config = GptSection(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads)
    with torch.device("meta"):
        ours, other = build_model(config, 50_257), theirs(config, 50_257)
    built = sum(parameter.numel() for parameter in ours.parameters())
    assert built == parameters(config, 50_257).total == sum(p.numel() for p in other.parameters()) == count


def test_parameters_of_the_recipes() -> None:
    """The closed form, and nanoGPT's count, which leaves the positions out: 10.65M at its characters' vocabulary."""
    shakespeare = load_recipe("configs/teaching/gpt-shakespeare.yaml")
    positions = shakespeare.model.max_seq_len * shakespeare.model.hidden_size
    assert parameters(shakespeare.model, 65).total - positions == 10_646_784
    for name in RELEASES:
        recipe = load_recipe(f"configs/{name if name != 'gpt2' else 'gpt2-124m'}.yaml")
        layers, heads, width, count = RELEASES[name]
        model = recipe.model
        assert (model.num_hidden_layers, model.num_attention_heads, model.hidden_size) == (layers, heads, width)
        # No biases, and rows up to a multiple of 64.
        biases = layers * 11 * width + width
        assert parameters(model, recipe.vocab_size).total == count - biases + (50_304 - 50_257) * width


def test_initial_values_have_the_deviations_of_gpt2() -> None:
    config = small(hidden_size=128, num_hidden_layers=8, num_attention_heads=4, initializer_range=0.02)
    model = build_model(config.model_copy(update={"tie_word_embeddings": False}), 512)
    init_weights(model, 7)
    for name, parameter in model.state_dict().items():
        if parameter.dim() == 1:
            assert torch.equal(parameter, torch.full_like(parameter, 0.0 if name.endswith("bias") else 1.0)), name
            continue
        adds = name.endswith(("o_proj.weight", "down_proj.weight"))
        wanted = 0.02 / math.sqrt(2 * 8) if adds else 0.02
        # Of n draws the deviation is off by its share of 1 / sqrt(2 n), one time in three.
        assert abs(float(parameter.std()) / wanted - 1) < 4 / math.sqrt(2 * parameter.numel()), name
        assert abs(float(parameter.mean())) < 4 * wanted / math.sqrt(parameter.numel()), name


def test_a_recipe_accepts_the_older_tokenizer_files(tmp_path: Path) -> None:
    """``vocab.json`` and ``merges.txt`` in a local folder; ids are those of ``tokenizers`` itself."""
    import tokenizers

    texts = [f"the {word} and the {word}s, {number}" for number, word in enumerate(("cat", "dog", "hen") * 20)]
    folder = tmp_path / "gpt2"
    folder.mkdir()
    reference = tokenizers.ByteLevelBPETokenizer()
    reference.train_from_iterator(texts, vocab_size=300, special_tokens=["<|endoftext|>"])
    reference.save_model(str(folder))
    source = tmp_path / "text.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    recipe = load_recipe(
        "configs/gpt2-124m.yaml",
        [
            f"run.root={tmp_path}",
            "data.source.kind=jsonl",
            f"data.source.path={source}",
            f"tokenizer.path={folder}",
            "model.vocab_size=320",
        ],
    )
    publish_documents(recipe)
    train(recipe)
    tokenizer = load_tokenizer(tmp_path / recipe.run.name / "tokenizer")
    assert tokenizer.vocab_size == reference.get_vocab_size() <= recipe.vocab_size
    assert all(tokenizer.encode(text) == reference.encode(text).ids for text in texts[:5])
    assert tokenizer.end_of_text_id == reference.token_to_id("<|endoftext|>")


@pytest.mark.parametrize("name", ["plain", "untied", "no_biases"])
@pytest.mark.parametrize("prompt", [1, 7, 16, 30])
def test_beyond_the_context_the_last_block_is_read_again(name: str, prompt: int) -> None:
    """As nanoGPT: each token is drawn from the last ``context_length`` ones, read from position 0; also in a batch."""
    context, count = 16, 40
    model = build(SHAPES[name].model_copy(update={"max_position_embeddings": context})).eval()
    ids = tokens(prompt, 1)[0].tolist()
    limits = Limits(count, context, VOCAB, crop=True)
    expected = list(ids)
    with torch.no_grad():
        for _ in range(count):
            expected.append(int(model(torch.tensor([expected[-context:]]))[0, -1].argmax()))
    greedy = Sampling(temperature=0)
    assert list(generate(model, ids, limits, greedy, seed=0)) == expected[prompt:]
    drawing = Sampling(0.9, top_k=20)
    prompts = [ids, [5], tokens(15, 1)[0].tolist()]
    alone = [list(generate(model, one, limits, drawing, seed=3 + row)) for row, one in enumerate(prompts)]
    assert generate_batch(model, prompts, limits, drawing, seed=3) == alone
    assert {len(new) for new in alone} == {count}
    if prompt <= context:
        ending = list(generate(model, ids, Limits(count, context, VOCAB), greedy, seed=0))
        assert ending == expected[prompt : context + 1]


def test_a_batch_whose_cropped_sequence_ends_first() -> None:
    """The others fit into their contexts again, but the cache does not know what they have read since."""
    model = build(SHAPES["plain"].model_copy(update={"max_position_embeddings": 8})).eval()
    limits = Limits(20, 8, VOCAB, stop_ids=range(0, VOCAB, 6), crop=True)
    seen = 0
    for seed in range(60):
        prompts = [tokens(7, 1)[0].tolist(), [5]]
        alone = [list(generate(model, one, limits, Sampling(1.0), seed=seed + row)) for row, one in enumerate(prompts)]
        assert generate_batch(model, prompts, limits, Sampling(1.0), seed=seed) == alone
        seen += 2 < len(alone[0]) < min(len(alone[1]) - 1, 6)
    assert seen, "in no draw did the cropped one end while the other's context was not yet full"
