"""The tokenizer: a SentencePiece BPE over the cleaned documents."""

from pydantic import Field

from configs.schema.base import Section


class TokenizerSection(Section):
    vocab_size: int = Field(32_000, ge=300, le=2**31 - 1, description="pieces, reserved ones and bytes included")
    sample_bytes: int = Field(100_000_000, gt=0, description="seeded sample of the documents that it is trained on")
    spare_tokens: int = Field(8, ge=0, le=256, description="reserved control tokens without a meaning yet")
