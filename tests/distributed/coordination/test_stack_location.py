"""Where a thread is, seen from another one."""

import threading
from pathlib import Path

import pytest
import torch

import vision3d_engine
from tests.patience import eventually
from vision3d_engine.distributed.coordination.stack_location import find_location, line_of


def sleeper(may_end):
    may_end.acquire()


def test_a_thread_is_found_in_its_own_line_and_does_not_wait():
    may_end = threading.Lock()
    may_end.acquire()
    thread = threading.Thread(target=sleeper, args=(may_end,))
    thread.start()
    eventually(lambda: find_location(thread.ident).line.endswith(" in sleeper"))
    place = find_location(thread.ident)
    may_end.release()
    thread.join()
    assert place.line.startswith("test_stack_location.py:")
    assert not place.is_waiting


@pytest.mark.parametrize(
    ("file", "is_waiting"),
    [
        ("distributed/world.py", True),
        ("metrics/meter.py", True),
        ("update/clipping.py", True),
        ("optim/optimizer.py", False),
        ("utils.py", False),
    ],
)
def test_code_of_the_engine_that_reads_the_device_or_other_processes_may_wait_for_them(file, is_waiting):
    started, may_end, scope = threading.Lock(), threading.Lock(), {}
    source = "def act(started, may_end):\n    started.release()\n    may_end.acquire()"
    exec(compile(source, str(Path(vision3d_engine.__file__).parent / file), "exec"), scope)
    with started, may_end:
        thread = threading.Thread(target=scope["act"], args=(started, may_end))
        thread.start()
        started.acquire()
        place = find_location(thread.ident)
    thread.join()
    assert place.is_waiting == is_waiting


def test_a_backward_pass_may_wait_for_other_processes():
    found = []

    class Look(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return x.clone()

        @staticmethod
        def backward(context, gradient):
            thread = threading.Thread(target=lambda: found.append(find_location(me)))
            thread.start()
            thread.join()
            return gradient

    me = threading.get_ident()
    Look.apply(torch.ones(1, requires_grad=True)).backward()
    assert "in backward" in found[0].line


def test_the_line_of_an_error_lies_outside_torch():
    with pytest.raises(RuntimeError) as caught:
        torch.nn.Linear(2, 1)(torch.zeros(3))
    assert line_of(caught.value.__traceback__).endswith("in test_the_line_of_an_error_lies_outside_torch")
