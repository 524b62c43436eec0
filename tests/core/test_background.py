"""Notes that a thread delivers: none lost, none twice, in order, whatever happens in between."""

import gc
import os
import subprocess
import sys
import threading
import time
import weakref

import pytest

from vision3d_engine.loggers import outbox as module
from vision3d_engine.loggers.outbox import Outbox

SOON_S = 10


def eventually(condition):
    """Wait until a condition holds; much longer than it should take."""
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Deliver as often as the interpreter allows, so that threads meet."""
    monkeypatch.setattr(module, "_EVERY_S", 0.001)


@pytest.fixture
def slow_thread(monkeypatch):
    """Let the thread wait for long between two deliveries."""
    monkeypatch.setattr(module, "_EVERY_S", 600)


@pytest.fixture
def found():
    return []


@pytest.fixture
def box(found):
    outbox = Outbox(found.extend)
    yield outbox
    outbox.close()


def test_notes_are_delivered_by_a_thread_in_order(box, found):
    for number in range(1000):
        box.put(number)
    eventually(lambda: len(found) == 1000)
    assert found == list(range(1000))


def test_many_notes_are_delivered_at_a_time(slow_thread):
    deliveries = []
    box = Outbox(deliveries.append)
    for number in range(100):
        box.put(number)
    box.flush()
    assert deliveries == [list(range(100))]
    box.close()


def test_nothing_is_delivered_when_nothing_is_there():
    deliveries = []
    box = Outbox(deliveries.append)
    box.flush()
    box.close()
    assert deliveries == []


def test_notes_from_several_threads_meet_flushes_from_others_and_each_is_delivered_once(box, found):
    def put(name):
        for number in range(3000):
            box.put((name, number))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        writers = [threading.Thread(target=put, args=(name,)) for name in range(3)]
        for writer in writers:
            writer.start()
        while any(writer.is_alive() for writer in writers):
            box.flush()
    finally:
        sys.setswitchinterval(interval)
    box.close()
    assert len(found) == 9000
    for name in range(3):
        assert [number for writer, number in found if writer == name] == list(range(3000))


def test_first_notes_of_several_threads_begin_one_thread():
    def outboxes():
        return [thread for thread in threading.enumerate() if thread.name == "outbox"]

    before, found = len(outboxes()), []
    box = Outbox(found.extend)
    box._closed.clear = lambda: time.sleep(0.05)  # while one thread begins, the others come
    writers = [threading.Thread(target=box.put, args=(name,)) for name in range(4)]
    box._waiting.is_set = lambda: False
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(SOON_S)
    assert len(outboxes()) == before + 1
    box.close()
    assert sorted(found) == [0, 1, 2, 3]


def test_each_note_put_after_any_other_is_delivered_by_the_thread_without_a_flush(box, found):
    """The thread may clear its flag between any two operations of ``put``."""
    for number in range(300):
        box.put(number)
        if number % 3 == 0:
            eventually(lambda number=number: len(found) == number + 1)
    eventually(lambda: len(found) == 300)


class _Interrupted(threading.Event):
    """An event that lets something happen right after it has been cleared."""

    then = staticmethod(lambda: None)

    def clear(self):
        super().clear()
        act, self.then = self.then, staticmethod(lambda: None)
        act()


def test_a_note_put_right_after_the_flag_was_cleared_is_delivered(box, found):
    box._waiting = _Interrupted()
    box._waiting.then = lambda: box.put("second")
    box.put("first")
    eventually(lambda: found == ["first", "second"])
    box.put("third")
    eventually(lambda: found == ["first", "second", "third"])


def test_a_note_put_while_notes_are_delivered_comes_after_them():
    found = []

    def deliver(notes):
        found.append(list(notes))
        if notes == ["first"]:
            box.put("second")

    box = Outbox(deliver)
    box.put("first")
    box.flush()
    box.close()
    assert found == [["first"], ["second"]]


class _Slow:
    """Delivers when it is told to, and notices when two deliveries meet."""

    def __init__(self):
        self.begun, self.may_end = threading.Event(), threading.Event()
        self.found, self.at_work, self.met = [], 0, False

    def __call__(self, notes):
        self.at_work += 1
        self.met |= self.at_work > 1
        self.begun.set()
        assert self.may_end.wait(SOON_S)
        self.found += notes
        self.at_work -= 1


def test_a_slow_delivery_keeps_no_put_waiting_and_a_flush_waits_for_its_end():
    slow = _Slow()
    box = Outbox(slow)
    box.put("first")
    assert slow.begun.wait(SOON_S)
    box.put("second")  # would never return if it waited
    after_flush = []
    flushing = threading.Thread(target=lambda: (box.flush(), after_flush.append(list(slow.found))))
    flushing.start()
    time.sleep(0.02)
    assert after_flush == []
    slow.may_end.set()
    flushing.join(SOON_S)
    assert after_flush == [["first", "second"]]
    box.close()
    assert not slow.met


def test_a_flush_waits_also_for_a_delivery_that_has_taken_the_last_note():
    slow = _Slow()
    box = Outbox(slow)
    box.put("only")
    assert slow.begun.wait(SOON_S)
    threading.Timer(0.02, slow.may_end.set).start()
    box.flush()
    assert slow.found == ["only"]
    box.close()


def test_close_delivers_what_is_there_and_ends_the_thread(slow_thread, box, found):
    box.put("last")
    thread = box._thread
    box.close()
    assert found == ["last"]
    assert not thread.is_alive()


@pytest.mark.parametrize("is_flushed_before", [True, False])
def test_a_note_after_close_begins_anew(box, found, is_flushed_before):
    for number in range(5):
        box.put(number)
        if is_flushed_before:
            box.flush()
        box.close()
        box.close()
    box.put("again")
    eventually(lambda: found == [*range(5), "again"])


def test_a_note_after_the_close_of_an_unused_outbox_is_delivered(box, found):
    box.close()
    box.put("first")
    eventually(lambda: found == ["first"])


def test_the_thread_survives_what_deliver_raises_and_the_next_flush_raises_it():
    found = []

    def deliver(notes):
        if "bad" in notes:
            raise ValueError("bad note")
        found.extend(notes)

    box = Outbox(deliver)
    box.put("bad")
    eventually(lambda: box._error is not None)
    box.put("good")
    eventually(lambda: found == ["good"])
    with pytest.raises(ValueError, match="bad note"):
        box.flush()
    box.flush()  # it is raised once
    box.put("bad")
    eventually(lambda: box._error is not None)
    box.put("last")
    with pytest.raises(ValueError, match="bad note"):
        box.close()
    assert found == ["good", "last"]


def test_what_deliver_raises_in_a_flush_is_raised_there_and_later_notes_are_delivered(slow_thread):
    found = []

    def deliver(notes):
        if notes == ["bad"]:
            raise ValueError("bad note")
        found.extend(notes)

    box = Outbox(deliver)
    box.put("bad")
    with pytest.raises(ValueError, match="bad note"):
        box.flush()
    box.put("good")
    box.close()
    assert found == ["good"]


@pytest.mark.parametrize("by_thread", [True, False])
def test_deliver_may_cause_a_flush_and_does_not_wait_for_itself(by_thread):
    """As an object does whose ``__del__`` logs a message, wherever it is collected."""
    found = []

    def deliver(notes):
        box.flush()
        found.extend(notes)

    box = Outbox(deliver)
    box.put("note")
    if not by_thread:
        box.flush()
    eventually(lambda: found == ["note"])
    box.close()


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
    deadline = time.monotonic() + SOON_S
    while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            return "hung"
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(ended[1])


@needs_fork
def test_a_process_forked_while_the_thread_delivers_neither_hangs_nor_delivers_the_parents_notes():
    slow = _Slow()
    box = Outbox(slow)
    box.put("first")
    assert slow.begun.wait(SOON_S)
    box.put("second")

    def act():
        slow.may_end.set()
        box.flush()
        assert slow.found == []
        box.put("own")
        eventually(lambda: slow.found == ["own"])
        box.close()

    assert in_child(act) == 0
    slow.may_end.set()
    box.close()
    assert slow.found == ["first", "second"]


@needs_fork
def test_many_forks_while_notes_come_and_go_hang_nobody(box, found):
    for number in range(30):
        box.put(number)
        assert in_child(box.flush) == 0
    box.close()
    assert found == list(range(30))


@pytest.mark.parametrize("ending", ["", "raise SystemExit(3)", "raise ValueError"])
def test_what_is_left_at_the_end_of_the_program_is_delivered(ending, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import runpy, sys\n"  # the file alone, since the whole package takes seconds to load
        "box = runpy.run_path(sys.argv[1])['Outbox'](print)\n"
        f"box.put('last words')\nbox.put('very last')\n{ending}\n"
    )
    command = [sys.executable, script, module.__file__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "['last words', 'very last']\n"


def test_an_outbox_that_was_closed_is_collected():
    box = Outbox(print)
    box.close()
    alive = weakref.ref(box)
    del box
    gc.collect()
    assert alive() is None
