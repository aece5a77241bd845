"""The tokenizer: a SentencePiece BPE or the characters of the documents, or a ready one in Hugging Face's format."""

from typing import Literal

from pydantic import Field, model_validator

from configs.schema.base import OptionalPath, Section

#: Names of the reserved tokens of a trained tokenizer, in id order. Its spare tokens follow them. See
#: ``tokenizer/special_tokens.py``.
RESERVED_TOKENS = (
    "<unk>",
    "<|begin|>",
    "<|endoftext|>",
    "<|pad|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)


class TokenizerSection(Section):
    kind: Literal["bpe", "characters", "huggingface", "run"] = Field(
        "bpe",
        description="bpe: trained on the documents; characters: each that they have is an id; huggingface, run: "
        "taken as it is from path",
    )
    path: OptionalPath = Field(
        None,
        description="huggingface: tokenizer.json, a folder with one, or a hub repository such as gpt2; run: folder of "
        "a run, or its tokenizer/",
    )
    vocab_size: int = Field(
        32_000, gt=0, le=2**31 - 1, description="pieces, reserved ones and bytes included; characters: at most"
    )
    sample_bytes: int = Field(
        100_000_000, gt=0, description="seeded sample of the documents that bpe is trained on and compression measured"
    )
    spare_tokens: int = Field(8, ge=0, le=256, description="reserved control tokens without a meaning yet")

    @property
    def is_ready(self) -> bool:
        """Whether it is taken from elsewhere and not made of the documents."""
        return self.kind in ("huggingface", "run")

    @model_validator(mode="after")
    def _fits(self) -> "TokenizerSection":
        if self.is_ready != (self.path is not None):
            raise ValueError("path goes with kind=huggingface and kind=run, and they with it")
        return self
