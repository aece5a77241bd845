"""Logs to Weights & Biases from a background thread, so that neither the network nor an error affects training."""

import contextlib
import importlib.util
import queue
import secrets
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from artefacts import atomic
from artefacts.errors import RequestError
from artefacts.progress import warn
from artefacts.training_folder import TrainingRun
from configs.schema.tracking import WandbSection

#: The file in the training folder with the W&B run's id, which a resumed run reads.
ID_FILE = "wandb-id"
#: Records that wait for the thread. If W&B falls behind further, the oldest ones are dropped.
_BACKLOG = 10_000
#: Seconds to wait for the last uploads when training ends or is interrupted.
_FINISH_SECONDS = 10
#: Seconds to wait for W&B's server at the start. A run that is interrupted meanwhile waits too, so this must be less
#: than the grace period after a signal.
_INIT_SECONDS = 30


def check_wandb(section: WandbSection | None) -> None:
    """Check that wandb is installed if the recipe uses it.

    Raises:
        RequestError: it is not installed.
    """
    if section is not None and importlib.util.find_spec("wandb") is None:
        raise RequestError("train.wandb needs the package wandb: `pip install 'wandb>=0.31'`, or leave the key out")


class WandbWriter:
    """A W&B run. All methods return at once, except ``close``, and none raises.

    W&B discards records whose step is lower than the previous record's, but a resumed run repeats the steps after its
    checkpoint. The step is therefore an ordinary value, ``step``, which W&B shows on the x-axis of every curve.
    """

    def __init__(self, section: WandbSection, run: TrainingRun) -> None:
        """Start the thread, which starts or resumes the W&B run.

        Args:
            section: the recipe's W&B section.
            run: the training run. Its folder has the resolved recipe, which becomes the W&B run's config.
        """
        self._section, self._run = section, run
        self._records: queue.Queue[dict[str, Any] | None] = queue.Queue(_BACKLOG)
        self._is_dropping = self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Log a step's values, keyed by curve name."""
        self._put({"step": step, **values})

    def add_samples(self, step: int, samples: Sequence[tuple[str, str]]) -> None:
        """Log (prompt, completion) pairs as a table."""
        self._put({"step": step, "samples": list(samples)})

    def close(self) -> None:
        """Finish the W&B run, for at most a few seconds. What is not uploaded by then stays in ``wandb/``."""
        self._put(None)
        self._thread.join(_FINISH_SECONDS)
        self._is_closed = True
        if self._thread.is_alive():
            warn(f"W&B did not finish in {_FINISH_SECONDS} s: upload the rest with `wandb sync`")

    def _put(self, record: dict[str, Any] | None) -> None:
        if not self._thread.is_alive():
            return
        # The oldest record makes room: the last values become the run's summary, and None must always arrive.
        while True:
            with contextlib.suppress(queue.Full):
                return self._records.put_nowait(record)
            if not self._is_dropping:
                warn("W&B cannot keep up: some records are not logged there")
            self._is_dropping = True
            with contextlib.suppress(queue.Empty):
                self._records.get_nowait()

    def _work(self) -> None:
        try:
            self._log()
        except Exception as error:  # wandb raises errors of many kinds, and none of them may end training
            first_line = (str(error).splitlines() or [type(error).__name__])[0]
            if not self._is_closed:
                warn(f"W&B failed ({first_line}): training continues without it")

    def _log(self) -> None:
        import wandb

        run = self._init(wandb)
        run.define_metric("step", hidden=True)
        run.define_metric("*", step_metric="step")
        while (record := self._records.get()) is not None:
            if "samples" in record:
                record["samples"] = wandb.Table(["prompt", "completion"], [list(pair) for pair in record["samples"]])
            run.log(record)
        run.finish()

    def _init(self, wandb: Any) -> Any:
        """Start or resume the W&B run."""
        section, folder = self._section, self._run.folder
        settings = wandb.Settings(
            console="off",
            silent=True,
            save_code=False,
            init_timeout=_INIT_SECONDS,
            finish_timeout=_FINISH_SECONDS,
        )
        default_mode = wandb.setup(settings).settings.mode
        if (section.mode or default_mode) == "online" and not wandb.login(prompt=False, verify=False):
            raise RequestError("no API key; run `wandb login`, or set train.wandb.mode=offline")
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
        run_name = recipe["run"]["name"]
        run = wandb.init(
            project=section.project,
            entity=section.entity,
            name=f"{section.name or run_name}-{self._run.name}",
            group=run_name,
            job_type=self._run.stage,
            tags=list(section.tags),
            mode=section.mode,
            id=_run_id(folder / ID_FILE),
            resume="allow",
            dir=folder,
            settings=settings,
        )
        # Topology and retention may have changed since the start of the run.
        run.config.update(recipe, allow_val_change=True)
        return run


def _run_id(path: Any) -> str:
    """Return the id in a file, or a new one, which is written there."""
    try:
        stored = str(path.read_text(encoding="utf-8")).strip()
    except (OSError, UnicodeDecodeError):
        stored = ""
    if not stored:
        stored = secrets.token_hex(8)
        atomic.write_text(path, f"{stored}\n")
    return stored
