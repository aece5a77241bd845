"""Prefetching reads the same batches, raises its thread's errors, and stops when it is closed."""

import threading

import pytest
import torch

from training.data.batch import Batch
from training.data.prefetch import Prefetched

CPU = torch.device("cpu")


class Counted:
    """Batches that contain their step and rank; fails at one step."""

    def __init__(self, failing: int = -1) -> None:
        self.read: list[int] = []
        self.failing = failing

    def micro_batches(self, step: int, rank: int, ranks: int, micro_batch: int) -> list[Batch]:
        if step == self.failing:
            raise OSError(f"step {step} cannot be read")
        self.read.append(step)
        return [Batch(torch.tensor([[step, rank, ranks, micro_batch]]), torch.tensor([[number]])) for number in (0, 1)]


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_the_same_batches_are_read(depth) -> None:
    plain, source = Counted(), Counted()
    with Prefetched(source, depth, steps=9, device=CPU) as data:
        for step in range(4, 9):
            ahead, expected = data.micro_batches(step, 1, 2, 8), plain.micro_batches(step, 1, 2, 8)
            assert [b.inputs.tolist() for b in ahead] == [b.inputs.tolist() for b in expected]
            assert len(source.read) <= (step - 4) + 2 + depth
    assert source.read == plain.read and not threads()


def test_another_step_restarts_prefetching() -> None:
    with Prefetched(Counted(), 2, steps=50, device=CPU) as data:
        for step in (0, 1, 30, 31, 2, 49):
            assert data.micro_batches(step, 0, 1, 8)[0].inputs[0, 0] == step
        assert len(threads()) <= 1
    assert not threads()


def test_an_error_is_raised_at_its_step() -> None:
    with Prefetched(Counted(failing=2), 4, steps=9, device=CPU) as data:
        for step in (0, 1):
            data.micro_batches(step, 0, 1, 8)
        with pytest.raises(OSError, match="step 2 cannot be read"):
            data.micro_batches(2, 0, 1, 8)
        assert not threads()


def test_an_exception_stops_the_thread() -> None:
    with pytest.raises(KeyboardInterrupt), Prefetched(Counted(), 2, steps=9, device=CPU) as data:
        data.micro_batches(0, 0, 1, 8)
        assert threads()
        raise KeyboardInterrupt
    assert not threads()


@pytest.mark.gpu
def test_batches_for_a_gpu_are_in_pinned_memory() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    with Prefetched(Counted(), 2, steps=9, device=torch.device("cuda", 0)) as data:
        for step in range(9):
            for batch in data.micro_batches(step, 0, 1, 8):
                assert batch.inputs.is_pinned() and batch.labels.is_pinned()
                assert batch.to(torch.device("cuda", 0)).inputs[0, 0].item() == step
