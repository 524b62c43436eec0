"""Items that a thread writes: none lost, none twice, in order, whatever happens in between."""

import gc
import os
import sys
import threading
import time
import weakref
from itertools import chain

import pytest

from tests.patience import PATIENCE_S, eventually
from vision3d_engine.core import background
from vision3d_engine.core.background import BackgroundListener


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Deliver as often as the interpreter allows, so that threads meet."""
    monkeypatch.setattr(background, "_EVERY_S", 0.001)


@pytest.fixture
def slow_thread(monkeypatch):
    """Let the thread wait for long between two rounds."""
    monkeypatch.setattr(background, "_EVERY_S", 600)


@pytest.fixture
def found():
    return []


@pytest.fixture
def listener(found):
    listener = BackgroundListener(found.extend)
    yield listener
    listener.flush()


def test_items_are_written_by_a_thread_in_order(listener, found):
    for number in range(1000):
        listener.put(number)
    eventually(lambda: len(found) == 1000)
    assert found == list(range(1000))


def test_many_items_are_written_at_a_time(slow_thread):
    rounds = []
    listener = BackgroundListener(rounds.append)
    for number in range(100):
        listener.put(number)
    listener.flush()
    assert rounds == [list(range(100))]
    listener.flush()


def test_nothing_is_written_when_nothing_is_there():
    rounds = []
    listener = BackgroundListener(rounds.append)
    listener.flush()
    listener.flush()
    assert rounds == []


def test_items_from_several_threads_meet_flushes_from_others_and_each_is_written_once(listener, found):
    def put(name):
        for number in range(3000):
            listener.put((name, number))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        writers = [threading.Thread(target=put, args=(name,)) for name in range(3)]
        for writer in writers:
            writer.start()
        while any(writer.is_alive() for writer in writers):
            listener.flush()
    finally:
        sys.setswitchinterval(interval)
    listener.flush()
    assert len(found) == 9000
    for name in range(3):
        assert [number for writer, number in found if writer == name] == list(range(3000))


def test_first_items_of_several_threads_begin_one_thread(monkeypatch):
    started, found = [], []

    class Counted(threading.Thread):
        def start(self):
            started.append(1)
            time.sleep(0.05)  # while one thread begins, the others come
            super().start()

    monkeypatch.setattr(background, "Thread", Counted)
    listener = BackgroundListener(found.extend)
    writers = [threading.Thread(target=listener.put, args=(name,)) for name in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(PATIENCE_S)
    assert len(started) == 1
    listener.flush()
    assert sorted(found) == [0, 1, 2, 3]


def test_each_item_put_after_any_other_is_written_by_the_thread_without_a_flush(listener, found):
    """The thread may clear its flag between any two operations of ``put``."""
    for number in range(300):
        listener.put(number)
        if number % 3 == 0:
            eventually(lambda number=number: len(found) == number + 1)
    eventually(lambda: len(found) == 300)


def test_an_item_put_while_a_flush_ends_the_thread_is_written_without_another_flush():
    found = []

    class Interrupted(BackgroundListener):
        def _stop(self):
            super()._stop()
            self.put("late")  # as another thread may do it, which saw that the thread was there

    listener = Interrupted(found.extend)
    listener.put("first")
    eventually(lambda: found == ["first"])
    listener.flush()
    assert found == ["first", "late"]
    listener.put("third")
    eventually(lambda: found == ["first", "late", "third"])
    BackgroundListener._stop(listener)


def test_an_item_put_while_items_are_written_comes_after_them():
    found = []

    def write(items):
        found.append(list(items))
        if items == ["first"]:
            listener.put("second")

    listener = BackgroundListener(write)
    listener.put("first")
    listener.flush()
    listener.flush()
    assert found == [["first"], ["second"]]


class _Slow:
    """Delivers when it is told to, and notices when two rounds meet."""

    def __init__(self):
        self.begun, self.may_end = threading.Event(), threading.Event()
        self.found, self.at_work, self.met = [], 0, False

    def __call__(self, items):
        self.at_work += 1
        self.met |= self.at_work > 1
        self.begun.set()
        assert self.may_end.wait(PATIENCE_S)
        self.found += items
        self.at_work -= 1


def test_a_slow_round_keeps_no_put_waiting_and_a_flush_waits_for_its_end():
    slow = _Slow()
    listener = BackgroundListener(slow)
    listener.put("first")
    assert slow.begun.wait(PATIENCE_S)
    listener.put("second")  # would never return if it waited
    after_flush = []
    flushing = threading.Thread(target=lambda: (listener.flush(), after_flush.append(list(slow.found))))
    flushing.start()
    time.sleep(0.02)
    assert after_flush == []
    slow.may_end.set()
    flushing.join(PATIENCE_S)
    assert after_flush == [["first", "second"]]
    listener.flush()
    assert not slow.met


def test_a_flush_waits_also_for_a_round_that_has_taken_the_last_item():
    slow = _Slow()
    listener = BackgroundListener(slow)
    listener.put("only")
    assert slow.begun.wait(PATIENCE_S)
    threading.Timer(0.02, slow.may_end.set).start()
    listener.flush()
    assert slow.found == ["only"]
    listener.flush()


def test_a_flush_writes_what_is_there_and_ends_the_thread(slow_thread, found):
    before = threading.active_count()
    listener = BackgroundListener(found.extend)
    listener.put("last")
    assert threading.active_count() == before + 1
    listener.flush()
    assert found == ["last"]
    assert threading.active_count() == before


def test_an_item_after_a_flush_begins_anew(listener, found):
    for number in range(5):
        listener.put(number)
        listener.flush()
        listener.flush()
    listener.put("again")
    eventually(lambda: found == [*range(5), "again"])


def test_an_item_after_the_flush_of_an_unused_listener_is_written(listener, found):
    listener.flush()
    listener.put("first")
    eventually(lambda: found == ["first"])


def test_items_that_gather_are_written_five_times_a_second_without_waking_the_thread_for_each(monkeypatch):
    monkeypatch.setattr(background, "_EVERY_S", 0.2)
    rounds, started = [], time.monotonic()
    listener = BackgroundListener(rounds.append)
    for number in range(100):
        listener.put(number)
        time.sleep(0.003)
    listener.flush()
    assert list(chain(*rounds)) == list(range(100))
    assert len(rounds) <= (time.monotonic() - started) / 0.2 + 1


@pytest.mark.parametrize("by_thread", [True, False])
def test_write_may_cause_a_flush_and_does_not_wait_for_itself(by_thread):
    """As an object does whose ``__del__`` logs a message, wherever it is collected."""
    found = []

    def write(items):
        listener.flush()
        found.extend(items)

    listener = BackgroundListener(write)
    listener.put("item")
    if not by_thread:
        listener.flush()
    eventually(lambda: found == ["item"])
    listener.flush()


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def in_child(act):
    """Run a function in a forked process and return its exit code; one that hangs is killed."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
        except BaseException:  # noqa: BLE001  tell it by the code
            os._exit(1)
        os._exit(0)
    deadline = time.monotonic() + PATIENCE_S
    while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            return "hung"
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(ended[1])


@needs_fork
def test_a_process_forked_while_the_thread_writes_neither_hangs_nor_writes_the_parents_items():
    slow = _Slow()
    listener = BackgroundListener(slow)
    listener.put("first")
    assert slow.begun.wait(PATIENCE_S)
    listener.put("second")

    def act():
        slow.may_end.set()
        listener.flush()
        assert slow.found == []
        listener.put("own")
        eventually(lambda: slow.found == ["own"])
        listener.flush()

    assert in_child(act) == 0
    slow.may_end.set()
    listener.flush()
    assert slow.found == ["first", "second"]


@needs_fork
def test_many_forks_while_items_come_and_go_hang_nobody(listener, found):
    for number in range(30):
        listener.put(number)
        assert in_child(listener.flush) == 0
    listener.flush()
    assert found == list(range(30))


def test_a_listener_that_was_flushed_is_collected():
    listener = BackgroundListener(print)
    listener.put("item")
    listener.flush()
    alive = weakref.ref(listener)
    del listener
    gc.collect()
    assert alive() is None
