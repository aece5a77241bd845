"""Events of a training run: which callbacks are called, in which order, and what ends the run."""

from collections.abc import Iterator, Sequence
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from artefacts.errors import RunError
from artefacts.signals import StopRequest
from tests.support.training.contexts import stub_context
from training.data.batch import Batch
from training.distributed.join import join
from training.distributed.ranks import destroy_process_group
from training.trainer.callback import Callback, StepResult
from training.trainer.callbacks.build import build_callbacks
from training.trainer.context import TrainingContext
from training.trainer.trainer import Ended, Trainer

STEP = ["on_step_end", "reduce_inputs", "on_reduced"]


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    join()
    yield
    destroy_process_group()


class Recorder(Callback):
    """Records its events in a list that it may share with others."""

    def __init__(self, events: list[str], name: str = "", numbers: Sequence[float] = ()) -> None:
        self.events, self.numbers = events, numbers
        self.sums: list[Sequence[float]] = []
        self._name = name

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_") or name in ("reduce_inputs", "close"):
            self.events.append(f"{self._name}{name}")
        return super().__getattribute__(name)

    def reduce_inputs(self) -> Sequence[float]:
        return self.numbers

    def on_reduced(self, sums: Sequence[float]) -> None:
        self.sums.append(sums)


class At(Callback):
    """Does something after a step."""

    def __init__(self, step: int, action: Any) -> None:
        self._step, self._action = step, action

    def on_step_end(self, result: StepResult) -> None:
        if result.step == self._step:
            self._action()


def context(
    steps: int, start: int = 0, crash_at: int | None = None, stop: StopRequest | None = None
) -> TrainingContext:
    """The context of a training whose model is a single weight."""
    weight = torch.nn.Parameter(torch.ones(1))
    engine = Mock(module=torch.nn.ParameterList([weight]), optimizer=Mock(param_groups=[{}]))
    engine.is_gradient_accumulation_boundary.return_value = engine.was_step_applied.return_value = True
    engine.fp16_enabled.return_value = False
    objective = Mock(weights={"cross_entropy": 1.0}, return_value={"cross_entropy": weight.sum()})
    objective.counts.return_value = {"cross_entropy": 1}
    batch = Batch(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64))
    data = Mock()
    data.micro_batches.return_value = [batch]
    balancer = Mock()
    balancer.update.return_value = []
    stub = stub_context(
        engine=engine, objective=objective, data=data, balancer=balancer, stop=stop or StopRequest(), start_step=start
    )
    changes = {"steps": steps, "simulate_crash_at": crash_at}
    return stub_context(**{**vars(stub), "train": stub.train.model_copy(update=changes)})


def test_a_complete_training() -> None:
    events: list[str] = []
    assert Trainer(context(steps=2), [Recorder(events)]).run() is Ended.DONE
    assert events == ["on_train_begin", *STEP, *STEP, "on_train_end", "close"]


def test_a_callback_ends_training_early_and_a_resumed_run_may_start_complete() -> None:
    events: list[str] = []
    ender = Recorder(events)
    trainer = Trainer(context(steps=9), [At(2, lambda: setattr(ender, "ends_training", lambda: True)), ender])
    assert trainer.run() is Ended.DONE and trainer.step == 2
    assert events == ["on_train_begin", *STEP, *STEP, "on_train_end", "close"]
    events.clear()
    resumed = Trainer(context(steps=9, start=2), [ender])
    assert resumed.run() is Ended.DONE and resumed.step == 2
    assert events == ["on_train_begin", "on_train_end", "close"]


def test_a_signal_at_the_step_that_ends_training_changes_nothing() -> None:
    stop = StopRequest()
    stop.requested = True
    ender = Callback()
    early = At(1, lambda: setattr(ender, "ends_training", lambda: True))
    assert Trainer(context(steps=4, stop=stop), [early, ender]).run() is Ended.DONE


def test_a_signal_interrupts_after_the_step() -> None:
    events: list[str] = []
    stop = StopRequest()
    callbacks = [At(2, lambda: setattr(stop, "requested", True)), Recorder(events)]
    assert Trainer(context(steps=4, start=1, stop=stop), callbacks).run() is Ended.STOPPED
    assert events == ["on_train_begin", *STEP, "on_interrupt", "close"]


def test_a_signal_at_the_last_step_changes_nothing() -> None:
    stop = StopRequest()
    stop.requested = True
    assert Trainer(context(steps=1, stop=stop), []).run() is Ended.DONE


def test_a_simulated_crash_calls_no_more_events_of_the_step() -> None:
    events: list[str] = []
    assert Trainer(context(steps=4, crash_at=1), [Recorder(events)]).run() is Ended.ABORTED
    assert events == ["on_train_begin", "on_step_end", "close"]


@pytest.mark.parametrize(("error", "heard"), [(RunError("bad"), ["on_failure", "close"]), (ValueError(), ["close"])])
def test_an_error_ends_training_and_a_run_error_is_announced(error: Exception, heard: list[str]) -> None:
    events: list[str] = []

    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        Trainer(context(steps=2), [Recorder(events), At(1, fail)]).run()
    assert events[-len(heard) - 1 :] == ["on_step_end", *heard]


def test_callbacks_are_called_in_order_and_get_the_sums_of_their_numbers() -> None:
    events: list[str] = []
    first, second = Recorder(events, "1 ", [1.5]), Recorder(events, "2 ", [2.0, 3.0])
    Trainer(context(steps=1), [first, second]).run()
    assert events == [f"{number} {event}" for event in ["on_train_begin", *STEP[:2]] for number in "12"] + [
        f"{number} {event}" for event in ["on_reduced", "on_train_end", "close"] for number in "12"
    ]
    assert (first.sums, second.sums) == ([[1.5]], [[2.0, 3.0]])


def test_the_order_of_the_callbacks_of_a_run() -> None:
    names = [type(callback).__name__.removesuffix("Callback") for callback in build_callbacks(stub_context())]
    assert names == ["Validation", "EarlyStopping", "Stability", "Checkpoint", "Metrics", "Samples", "Hang"]
