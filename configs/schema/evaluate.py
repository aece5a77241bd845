"""Evaluation and generation."""

from typing import Literal

from pydantic import Field, model_validator

from configs.schema.base import NonIdentity, OptionalPath, Section


class EvaluateSection(Section):
    batch: NonIdentity[int] = Field(16, gt=0, description="samples at a time")
    max_tokens: int | None = Field(
        None, gt=0, description="held-out tokens looked at; of examples, batches until so many targets; default: all"
    )


class GenerateSection(Section):
    prompt: str = Field("", description="text to go on from; a user's turn with chat")
    weights: OptionalPath = Field(
        None,
        description="a checkpoint, or pretrain/ or finetune/ of a run; default: the newest of generate.stage",
    )
    stage: Literal["pretrain", "finetune"] | None = Field(
        None,
        description="which of the run's weights generate, evaluate and export read; default: the fine-tuned ones where "
        "there are any, else the pretrained ones",
    )
    chat: bool = Field(False, description="wrap the prompt as a user's turn and answer as the assistant")
    max_new_tokens: int = Field(64, gt=0)
    samples: int = Field(1, gt=0, description="completions, drawn together; completion N from 0 has seed + N")
    crop: bool = Field(
        False,
        description="beyond the context go on from its last tokens, each step read anew; else the text ends there",
    )
    only_new: NonIdentity[bool] = Field(False, description="print the new text without the prompt before it")
    temperature: float = Field(0.8, ge=0, description="0: greedy")
    top_k: int = Field(0, ge=0, description="0: all")
    top_p: float = Field(1.0, gt=0, le=1)
    speculative: bool = Field(False, description="draft with multi-token prediction; the same text, greedy only")
    beams: int = Field(1, gt=0, description="of an encoder-decoder: beginnings that beam search follows; 1: greedy")
    length_penalty: float = Field(0.6, ge=0, description="of beam search: the higher, the longer (GNMT's alpha)")
    seed: int = Field(0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _fits(self) -> "GenerateSection":
        if self.weights and self.stage:
            raise ValueError(f"stage ({self.stage}) chooses among the run's own weights: leave it or weights out")
        if self.speculative and self.temperature:
            raise ValueError(
                f"temperature ({self.temperature:g}) must be 0 with speculative: drafts are checked greedily"
            )
        if self.samples > 1 and (self.speculative or not self.temperature):
            raise ValueError(f"samples ({self.samples}) needs temperature above 0: greedy completions are all the same")
        if self.speculative and self.crop:
            raise ValueError("crop reads the text anew for each token beyond the context: leave speculative out")
        return self
