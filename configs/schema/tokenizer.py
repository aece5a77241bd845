"""The tokenizer: trained on the documents, or taken from a file, the Hugging Face Hub or another run."""

from typing import Literal

from pydantic import Field, model_validator

from configs.schema.base import OptionalPath, Section

#: Names of a trained tokenizer's reserved tokens, in id order. The spare tokens come after them. See
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
    """The tokenizer, which is either trained on the cleaned documents or taken from elsewhere."""

    kind: Literal["bpe", "characters", "huggingface", "run"] = Field(
        "bpe",
        description="How the tokenizer is obtained. `bpe`: train a SentencePiece BPE on the documents. `characters`: "
        "use one id per distinct character in the documents. `huggingface` and `run`: use the existing tokenizer at "
        "`path`.",
    )
    path: OptionalPath = Field(
        None,
        description="Location of an existing tokenizer. For `huggingface`: a `tokenizer.json`, a folder that contains "
        "one, or a Hub repository such as `gpt2`. For `run`: the folder of another run, or its `tokenizer/`.",
    )
    vocab_size: int = Field(
        32_000,
        gt=0,
        le=2**31 - 1,
        description="Number of ids, including the 8 reserved tokens, the spare tokens and, for `bpe`, the 256 bytes. "
        "For `characters`, it is the maximum. A small corpus needs a small vocabulary. For `huggingface` and `run`, it "
        "only sets the default of `model.vocab_size`.",
    )
    sample_bytes: int = Field(
        100_000_000,
        gt=0,
        description="Size, in bytes, of the seeded random sample of documents used to train `bpe`. Compression is also "
        "measured on it.",
    )
    spare_tokens: int = Field(8, ge=0, le=256, description="Number of extra control tokens to reserve for later use.")

    @property
    def is_ready(self) -> bool:
        """Whether an existing tokenizer is loaded instead of training one on the documents."""
        return self.kind in ("huggingface", "run")

    @model_validator(mode="after")
    def _fits(self) -> "TokenizerSection":
        if self.is_ready != (self.path is not None):
            raise ValueError(f"path ({self.path}): kind=huggingface and kind=run need a path, other kinds take none")
        return self
