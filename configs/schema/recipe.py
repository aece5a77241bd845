"""The complete recipe, and checks that involve several sections."""

import math
from typing import Any, cast

from pydantic import Field, field_validator, model_validator

from artefacts.errors import RequestError
from configs.schema.base import Section
from configs.schema.data import DataSection
from configs.schema.evaluate import EvaluateSection, ExportSection, GenerateSection
from configs.schema.finetune import FinetuneSection
from configs.schema.launch import LaunchSection
from configs.schema.models import AnyModelSection, ModelSection
from configs.schema.models.base import Task
from configs.schema.models.deepseek import DeepseekSection
from configs.schema.run import RunSection
from configs.schema.tokenizer import RESERVED_TOKENS, TokenizerSection
from configs.schema.train import TrainSection

#: Keys of ``generate`` that only language models read, and keys that only encoder-decoders read.
_OF_TEXT = ("chat", "crop", "only_new", "temperature", "top_k", "top_p", "speculative")
_OF_PAIRS = ("beams", "length_penalty")
_LACKS = "the recipe has no {} section, which this command needs: add one, as in configs/demo.yaml"


class Recipe(Section):
    """A recipe. `model` and `train` can be left out if you only run the data stages."""

    run: RunSection
    data: DataSection = DataSection()
    tokenizer: TokenizerSection = TokenizerSection()
    model_section: AnyModelSection | None = Field(None, alias="model")
    train_section: TrainSection | None = Field(None, alias="train")
    finetune: tuple[FinetuneSection, ...] = ()
    evaluate: EvaluateSection = EvaluateSection()
    generate: GenerateSection = GenerateSection()
    export: ExportSection = ExportSection()
    launch: LaunchSection = LaunchSection()

    @field_validator("finetune", mode="before")
    @classmethod
    def _is_a_list(cls, value: Any) -> Any:
        """Accept a single stage without a list, and null for none."""
        return () if value is None else value if isinstance(value, (list, tuple)) else (value,)

    @model_validator(mode="after")
    def _fits(self) -> "Recipe":
        self._stages_fit()
        trained = not self.tokenizer.is_ready
        if trained and self.has_model and self.vocab_size < self.tokenizer.vocab_size:
            raise ValueError(
                f"model.vocab_size ({self.model.vocab_size}) is below tokenizer.vocab_size "
                f"({self.tokenizer.vocab_size}): the model would have no rows for the last token ids"
            )
        pieces = 256 if self.tokenizer.kind == "bpe" else 0
        if trained and self.tokenizer.vocab_size <= pieces + len(RESERVED_TOKENS) + self.tokenizer.spare_tokens:
            others = f"{pieces} bytes, " if pieces else ""
            raise ValueError(
                f"tokenizer.vocab_size ({self.tokenizer.vocab_size}) leaves no room for text next to {others}"
                f"{len(RESERVED_TOKENS)} reserved and {self.tokenizer.spare_tokens} spare tokens"
            )
        if not (self.has_model and self.train_section):
            return self
        self._lengths_fit()
        if self.task == "language_modeling":
            self._texts_fit()
        else:
            self._examples_fit()
        self._generation_fits()
        self._topology_fits()
        self._experts_fit()
        self._losses_fit()
        self._trained_part_fits()
        return self

    def _stages_fit(self) -> None:
        """Check that the fine-tuning stages have different names, and start from an earlier stage."""
        earlier = ["pretrain"]
        for stage in self.finetune:
            if stage.name in earlier:
                raise ValueError(f"finetune: two stages are called {stage.name}: set a different name for each")
            if stage.start_from not in (None, *earlier):
                raise ValueError(
                    f"{self.stage_key(stage, 'start_from')} ({stage.start_from}) is not an earlier stage: choose one "
                    f"of {', '.join(earlier)}"
                )
            earlier.append(stage.name)

    def _lengths_fit(self) -> None:
        max_seq_len = self.model.max_seq_len
        lengths = {"train.context_length": self.train.context_length}
        lengths |= {self.stage_key(stage, "max_length"): stage.max_length for stage in self.finetune}
        for key, length in lengths.items():
            if max_seq_len is not None and length > max_seq_len:
                raise ValueError(f"{key} ({length}) exceeds model.max_position_embeddings ({max_seq_len})")

    def _texts_fit(self) -> None:
        """Reject targets, which language models do not train on."""
        for source in self.data.named_sources.values():
            if source.target_field is not None:
                key = f"{self.data.key_of(source)}.target_field"
                raise ValueError(f"{key}: model.family={self.family} learns from text without targets: leave it out")

    def _generation_fits(self) -> None:
        """Reject keys of ``generate`` that the family does not read."""
        unread = (
            *(() if self.task == "language_modeling" else _OF_TEXT),
            *(() if self.task == "seq2seq" else _OF_PAIRS),
        )
        for key in unread:
            value = getattr(self.generate, key)
            if value != GenerateSection.model_fields[key].default:
                readers = "language models" if key in _OF_TEXT else "encoder-decoders"
                family = f"model.family={self.family}"
                raise ValueError(f"generate.{key} ({value}) is read only by {readers}, not by {family}: leave it out")

    def _examples_fit(self) -> None:
        """If the model is trained on examples, reject keys that it does not use, and require targets."""
        family = f"model.family={self.family}"
        if self.finetune:
            raise ValueError(f"finetune: {family} is not a language model and has no chat: leave it out")
        if self.train.samples:
            raise ValueError(f"train.samples: {family} is not a language model and completes no text: leave it out")
        if self.train.packing != "windows":
            raise ValueError(f"train.packing ({self.train.packing}): {family} learns from examples: leave it out")
        if self.train.mask_documents:
            raise ValueError(f"train.mask_documents: {family} reads one example at a time: leave it out")
        for name, source in self.data.named_sources.items():
            key = self.data.key_of(source)
            if not source.has_targets:
                raise ValueError(
                    f"{key} has no targets, which {family} needs: set {key}.target_field (jsonl, csv, parquet, "
                    "pydocs), or kind=parallel or sequences"
                )
            if source.weight != 1:
                raise ValueError(f"{key}.weight ({source.weight:g}): examples of {name} have no weight: leave it out")

    def _experts_fit(self) -> None:
        """Check the experts' sizes: grouped matrix products need rows whose size is a multiple of 16 bytes."""
        numbers = 4 if self.train.precision == "fp32" else 8
        model = self.model.backbone_section
        if not (isinstance(model, DeepseekSection) and model.has_experts):
            return
        inside = "" if model is self.model else "backbone."
        for key, size in (("hidden_size", model.hidden_size), ("moe_intermediate_size", model.moe_intermediate_size)):
            if size % numbers:
                raise ValueError(
                    f"model.{inside}{key} ({size}) is not a multiple of {numbers}, which {self.train.precision} needs"
                )

    def _losses_fit(self) -> None:
        """Reject keys for losses and expert balancing that the model does not have."""
        family, train = f"model.family={self.family}", self.train
        if not self.model.has_experts:
            for key in ("sequence_loss", "load_balance_loss", "router_z_loss"):
                if weight := getattr(train, key):
                    raise ValueError(f"train.{key} ({weight:g}): {family} has no experts here: leave it out")
        depth, has_experts = self.model.prediction_depth, self.model.has_experts
        for key, read in (("mtp_loss", depth > 0), ("router_bias_update_rate", has_experts)):
            weight, default = getattr(train, key), TrainSection.model_fields[key].default
            if not read and weight not in (0, default):
                what = "predicts one token ahead" if key == "mtp_loss" else "has no experts"
                raise ValueError(f"train.{key} ({weight:g}): {family} {what} here: leave it out")

    def _trained_part_fits(self) -> None:
        """Reject stages that would train layers that the model lacks."""
        for stage in self.finetune:
            for key, fault in stage.faults_for(self.model):
                raise ValueError(f"{self.stage_key(stage, key)}{fault}")

    def _topology_fits(self) -> None:
        ranks, ep = self.ranks, self.expert_parallel
        if ranks % ep:
            raise ValueError(
                f"train.expert_parallel ({ep}) does not divide the {ranks} processes (launch.processes x launch.nodes)"
            )
        if self.model.expert_count % ep:
            raise ValueError(
                f"model.n_routed_experts ({self.model.expert_count}) is not divisible by train.expert_parallel ({ep})"
                if self.model.has_experts
                else f"train.expert_parallel ({ep}): this model has no experts to train: leave it out"
            )
        if self.train.global_batch % (self.micro_batch * ranks):
            micro = f" x train.micro_batch ({self.train.micro_batch})" if self.train.micro_batch else ""
            raise ValueError(
                f"the {self.train.global_batch} samples of train.global_batch_tokens cannot be divided among {ranks} "
                f"processes{micro}: change launch.processes, train.micro_batch or train.global_batch_tokens"
            )
        if self.model.compile and self.train.zero_stage == 3:
            raise ValueError(
                "model.compile needs train.zero_stage below 3: gathering of partitioned weights cannot be compiled"
            )
        if self.train.offload_optimizer == "nvme" and ranks > 1:
            raise ValueError(
                f"train.offload_optimizer=nvme with {ranks} processes: DeepSpeed 0.19 would silently use wrong "
                "gradients: set cpu, or launch.processes=1"
            )
        if self.model.prediction_depth >= self.train.context_length:
            raise ValueError(
                f"model.num_nextn_predict_layers ({self.model.prediction_depth}) must be below train.context_length "
                f"({self.train.context_length})"
            )
        self._launch_fits()
        for stage in self.finetune:
            if stage.batch_examples % ranks:
                key = self.stage_key(stage, "batch_examples")
                raise ValueError(f"{key} ({stage.batch_examples}) is not divisible by the {ranks} processes")

    def _launch_fits(self) -> None:
        launch = self.launch
        if launch.nodes > 1 and launch.kind == "local":
            raise ValueError(
                f"launch.nodes ({launch.nodes}) needs launch.kind=torchrun, deepspeed or slurm: local is one machine"
            )
        if launch.kind == "torchrun" and launch.nodes > 1 and not launch.rendezvous:
            raise ValueError(
                "launch.rendezvous is missing: set the HOST:PORT at which the nodes meet, or launch.kind=slurm"
            )
        if launch.kind == "deepspeed" and launch.nodes > 1 and not launch.hostfile:
            raise ValueError(
                "launch.hostfile is missing: set a file with the hosts for DeepSpeed's launcher, or launch.kind=slurm"
            )

    @property
    def has_model(self) -> bool:
        """Whether the recipe has a model section."""
        return self.model_section is not None

    @property
    def task(self) -> Task:
        """What the model predicts (see ``ModelSection``). Language modeling if there is no model section."""
        return self.model_section.task if self.model_section else "language_modeling"

    def stage(self, name: str) -> FinetuneSection:
        """Return the fine-tuning stage with this name.

        Raises:
            RequestError: there is no such stage.
        """
        names = [stage.name for stage in self.finetune]
        if name not in names:
            raise RequestError(
                f"the recipe has no fine-tuning stage {name}: its stages are {', '.join(names) or 'none'}"
            )
        return self.finetune[names.index(name)]

    def start_of(self, stage: FinetuneSection) -> str:
        """Return the name of the stage whose weights a stage starts from, or ``pretrain``."""
        place = self.finetune.index(stage)
        return stage.start_from or (self.finetune[place - 1].name if place else "pretrain")

    def stage_key(self, stage: FinetuneSection, key: str = "") -> str:
        """Return the dotted key that overrides a key of a stage, or the key of the stage itself."""
        section = f"finetune.{stage.name}" if len(self.finetune) > 1 else "finetune"
        return f"{section}.{key}" if key else section

    @property
    def family(self) -> str:
        """The model's family."""
        return str(cast(Any, self.model).family)

    @property
    def targets_are_text(self) -> bool:
        """Whether the model's targets consist of tokens."""
        return self.task in ("token_classification", "seq2seq")

    @property
    def model(self) -> ModelSection:
        """The model section.

        Raises:
            RequestError: the recipe has no model section.
        """
        if self.model_section is None:
            raise RequestError(_LACKS.format("model"))
        return self.model_section

    @property
    def train(self) -> TrainSection:
        """The train section.

        Raises:
            RequestError: the recipe has no train section.
        """
        if self.train_section is None:
            raise RequestError(_LACKS.format("train"))
        return self.train_section

    @property
    def packs(self) -> bool:
        """Whether a data stage packs the samples (train.packing=best_fit)."""
        return self.train_section is not None and self.train_section.packing == "best_fit"

    @property
    def ranks(self) -> int:
        """Number of processes across all nodes."""
        return self.launch.processes * self.launch.nodes

    @property
    def expert_parallel(self) -> int:
        """Number of ranks that share a layer's experts: train.expert_parallel, or else the largest valid number."""
        return self.train.expert_parallel or math.gcd(self.ranks, self.model.expert_count)

    @property
    def micro_batch(self) -> int:
        """Samples per rank in a forward pass: train.micro_batch, or by default the rank's slice of the global batch."""
        return self.train.micro_batch or max(1, self.train.global_batch // self.ranks)

    def micro_batch_of(self, stage: FinetuneSection, tokens_per_example: float | None = None) -> int:
        """Examples per rank in a forward pass of a fine-tuning stage.

        This is the largest number that divides a rank's batch and has no more tokens than pretraining's micro-batch.
        By default, every example is counted with the maximum length.
        """
        share = stage.batch_examples // self.ranks
        tokens = self.micro_batch * self.train.context_length
        length = tokens_per_example or stage.rows * stage.max_length
        return max((size for size in range(1, share + 1) if share % size == 0 and size * length <= tokens), default=1)

    @property
    def vocab_size(self) -> int:
        """Number of embedding rows: model.vocab_size, or by default tokenizer.vocab_size."""
        return self.model.vocab_size or self.tokenizer.vocab_size
