"""Where the parts of a run lie on disk."""

from dataclasses import dataclass
from pathlib import Path

from configs.schema import Recipe


@dataclass(frozen=True)
class RunLayout:
    """Folders and files of one run; nothing is created by looking."""

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
        """With the run, not with shared data: it depends on the run's context length."""
        return _followed(self.run / "packing")

    @property
    def examples(self) -> Path:
        return _followed(self.run / "examples")

    @property
    def pretrain(self) -> Path:
        return _followed(self.run / "pretrain")

    @property
    def finetune(self) -> Path:
        return _followed(self.run / "finetune")

    @property
    def logs(self) -> Path:
        """What launchers and their processes said, over all starts."""
        return _followed(self.run / "logs")

    def launch(self, verb: str) -> Path:
        """Stands for the launching of a command, of which there may be one at a time; never made."""
        return self.run / f"{verb}-launch"

    @property
    def evaluation(self) -> Path:
        return _followed(self.run / "evaluation")

    @property
    def attention(self) -> Path:
        """Heat maps of a text, see ``python -m training evaluate attention``."""
        return _followed(self.run / "attention")

    @property
    def temperatures(self) -> Path:
        return self.run / "temperatures.json"

    @property
    def comparisons(self) -> Path:
        """What ``python -m training compare`` leaves."""
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
    """A folder, or where a link of its name leads, such as to another disk, on which everything then stays."""
    return folder.resolve() if folder.is_symlink() else folder
