"""The folders and files of a run."""

from dataclasses import dataclass
from pathlib import Path

from artefacts.training_folder import IDENTITY
from configs.schema import Recipe

#: The file in ``evaluation/`` with the results of ``evaluate``.
EVALUATION = "evaluation.json"
#: Prefix of the evaluation's inputs that are the examples of a fine-tuning stage, before its name.
EXAMPLES_OF = "examples of "
#: The file in ``evaluation-log/`` with the results of ``evaluate checkpoints``.
CHECKPOINT_RESULTS = "checkpoints.json"


@dataclass(frozen=True)
class RunLayout:
    """The folders and files of a run. No property creates anything."""

    run: Path
    data: Path

    @classmethod
    def of(cls, recipe: Recipe) -> "RunLayout":
        run = Path(recipe.run.root) / recipe.run.name
        return cls(run=run, data=Path(recipe.data.root) if recipe.data.root else run)

    @property
    def documents(self) -> Path:
        return _followed(self.data / "documents")

    @property
    def tokenizer(self) -> Path:
        return _followed(self.data / "tokenizer")

    @property
    def tokens(self) -> Path:
        return _followed(self.data / "tokens")

    @property
    def packing(self) -> Path:
        """Folder of the packing. It is never shared with other runs, because it depends on the context length."""
        return _followed(self.run / "packing")

    @property
    def examples(self) -> Path:
        """Folder of a supervised model's examples, and of one folder per fine-tuning stage."""
        return _followed(self.run / "examples")

    @property
    def pretrain(self) -> Path:
        return _followed(self.run / "pretrain")

    def examples_of(self, stage: str) -> Path:
        """Folder of a fine-tuning stage's examples."""
        return _followed(self.examples / stage)

    def finetune(self, stage: str) -> Path:
        """Folder of a fine-tuning stage."""
        return _followed(_followed(self.run / "finetune") / stage)

    def training(self, stage: str) -> Path:
        """Folder of a training stage: ``pretrain``, or the name of a fine-tuning stage."""
        return self.pretrain if stage == "pretrain" else self.finetune(stage)

    def finetuned(self) -> list[str]:
        """List the names of the fine-tuning stages that have started, in alphabetical order."""
        return sorted(path.parent.name for path in _followed(self.run / "finetune").glob(f"*/{IDENTITY}"))

    @property
    def logs(self) -> Path:
        """Folder for the output of launchers and their processes, across all restarts."""
        return _followed(self.run / "logs")

    def launch(self, verb: str) -> Path:
        """Return the path to lock so that only one launch runs at a time. The path is never created."""
        return self.run / f"{verb}-launch"

    @property
    def evaluation(self) -> Path:
        return _followed(self.run / "evaluation")

    @property
    def evaluation_log(self) -> Path:
        """Folder for what evaluations add up to: the results of all checkpoints, and scalars for TensorBoard."""
        return _followed(self.run / "evaluation-log")

    @property
    def attention(self) -> Path:
        """Folder for the attention maps of ``python -m training evaluate attention``."""
        return _followed(self.run / "attention")

    @property
    def temperatures(self) -> Path:
        return self.run / "temperatures.json"

    @property
    def comparisons(self) -> Path:
        """Folder for the results of ``python -m training compare``."""
        return _followed(self.run / "compare")

    @property
    def export(self) -> Path:
        return _followed(self.run / "export")

    @property
    def stats(self) -> Path:
        return self.data / "data.html"

    @property
    def report(self) -> Path:
        return self.run / "report.html"


def _followed(folder: Path) -> Path:
    """Return the folder. If it is a symbolic link, for example to another disk, return the link's target."""
    return folder.resolve() if folder.is_symlink() else folder
