"""Small models of every family with each of its options, and inputs for them."""

from dataclasses import dataclass
from typing import Any

import torch

from configs.schema.models import ModelSection
from configs.schema.models.bigram import BigramSection
from configs.schema.models.classifier import ClassifierSection
from configs.schema.models.encoder import EncoderSection
from configs.schema.models.encoder_decoder import EncoderDecoderSection
from configs.schema.models.gpt import GptSection
from tests.support.training.shapes import SHAPES
from training.models.registry import build_model, init_weights

VOCAB, LENGTH, CLASSES = 61, 9, 3
_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
}


def gpt(**changes: Any) -> GptSection:
    return GptSection(**{**_SIZES, "initializer_range": 0.2, **changes})


def encoder(**changes: Any) -> EncoderSection:
    return EncoderSection(**{**_SIZES, **changes})


def encoder_decoder(**changes: Any) -> EncoderDecoderSection:
    return EncoderDecoderSection(**{**_SIZES, **changes})


def classifier(backbone: ModelSection, **changes: Any) -> ClassifierSection:
    return ClassifierSection(backbone=backbone, classes=CLASSES, **changes)


#: Every family, and every branch of each at least once.
CASES: dict[str, ModelSection] = {
    "deepseek": SHAPES["groups"],
    "deepseek, tied": SHAPES["tied"],
    "gpt": gpt(),
    "gpt, sinusoidal": gpt(positions="sinusoidal", activation="gelu_new"),
    "gpt, alibi": gpt(positions="alibi", num_attention_heads=1, activation="relu"),
    "gpt, window": gpt(window=5, tie_word_embeddings=False),
    "gpt, alibi and window": gpt(positions="alibi", window=5, bias=False),
    "gpt, rope, swiglu, rms": gpt(positions="rope", activation="swiglu", norm="rms", bias=False),
    "gpt, no positions": gpt(positions="none"),
    "bigram": BigramSection(),
    "encoder": encoder(),
    "encoder, tied, without biases": encoder(tie_word_embeddings=True, bias=False),
    "encoder, rope, pre-norm": encoder(positions="rope", norm_first=True, activation="gelu"),
    "encoder, alibi and window": encoder(positions="alibi", window=5),
    "encoder, learned, swiglu": encoder(positions="learned", activation="swiglu"),
    "pairs": encoder_decoder(),
    "pairs, rope, one decoder layer": encoder_decoder(positions="rope", decoder_layers=1, tie_word_embeddings=True),
    "pairs, alibi": encoder_decoder(positions="alibi", share_embeddings=True, bias=False),
    "pairs, learned, pre-norm": encoder_decoder(positions="learned", norm_first=True, activation="swiglu"),
    "pairs, window, tied and shared": encoder_decoder(window=5, tie_word_embeddings=True, share_embeddings=True),
    "pairs, downsampled": encoder_decoder(cross_downsample=3, norm_first=True),
    "classifier, encoder, first": classifier(encoder(), pooling="first"),
    "classifier, encoder, mean": classifier(encoder(window=5, norm_first=True, tie_word_embeddings=True)),
    "classifier, gpt, last": classifier(gpt(), pooling="last"),
    "classifier, gpt, mean": classifier(gpt(positions="rope", activation="swiglu", norm="rms", bias=False)),
    "classifier, deepseek": classifier(SHAPES["groups"], pooling="last"),
}


def cases(*families: str) -> list[str]:
    """The names of the cases of these families."""
    return [name for name, section in CASES.items() if section.model_dump()["family"] in families]


def built(section: ModelSection, seed: int = 0) -> Any:
    """The initialized model, in evaluation mode."""
    model = build_model(section, VOCAB)
    init_weights(model, seed)
    return model.eval()


@dataclass
class MicroBatch:
    """A micro-batch: ids [B, T], the labels of the family, and further inputs of the model by name."""

    ids: torch.Tensor
    labels: torch.Tensor
    more: dict[str, torch.Tensor]

    def logits(self, model: Any) -> torch.Tensor:
        out: torch.Tensor = model(self.ids, **self.more)
        return out

    def loss(self, model: Any) -> torch.Tensor:
        total: torch.Tensor = sum(model(self.ids, targets=[self.labels], **self.more).values())
        return total

    def row(self, number: int) -> "MicroBatch":
        """A micro-batch of one of its samples."""
        one = slice(number, number + 1)
        return MicroBatch(self.ids[one], self.labels[one], {name: tensor[one] for name, tensor in self.more.items()})


def micro_batch(section: ModelSection, samples: int = 3, length: int = LENGTH, seed: int = 0) -> MicroBatch:
    """Random ids; where there is padding, all samples but the first have it."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(most: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, most, shape, generator=generator)

    ids, labels = drawn(VOCAB, samples, length), drawn(VOCAB, samples, length)
    lengths = torch.tensor([length if row == 0 else length - 4 + (row - 1) % 4 for row in range(samples)])
    if section.task == "seq2seq":
        return MicroBatch(ids, labels, {"source": drawn(VOCAB, samples, length), "source_lengths": lengths})
    if section.task == "sequence_classification":
        return MicroBatch(ids, drawn(CLASSES, samples), {"lengths": lengths})
    if section.task == "token_classification":
        labels[torch.arange(length) >= lengths[:, None]] = -100
        return MicroBatch(ids, labels, {"lengths": lengths})
    return MicroBatch(ids, labels, {})
