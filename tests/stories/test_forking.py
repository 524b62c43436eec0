"""A script that is forked is what the same script is that is started."""

import os
import signal
import subprocess
import sys

import pytest

from tests.patience import PATIENCE_S
from tests.stories.forking import Forked, run_forked

SHOWS = """
import os, sys, tempfile
import beside
print(__name__, __file__, sys.argv, os.getcwd(), os.environ["KIND"], tempfile.gettempdir(), beside.NAME)
print("to errors", file=sys.stderr)
"""
ENDS = {
    "well": "",
    "with a code": "sys.exit(3)",
    "with a sentence": "sys.exit('a reason')",
    "with an error": "def fail():\n    raise ValueError('a bad cloud')\nfail()",
    "by a signal": "os.kill(os.getpid(), 9)",
    "behind a thread": "import threading\nthreading.Timer(0.1, lambda: print('late', flush=True)).start()",
}


@pytest.mark.parametrize("end", ENDS)
def test_it_has_the_same_surroundings_and_ends_alike(end, tmp_path):
    (tmp_path / "script.py").write_text(f"{SHOWS}sys.stdout.flush()\n{ENDS[end]}\n")
    (tmp_path / "beside.py").write_text("NAME = 'beside'")
    words, environment = ["script.py", "a", "--b"], {**os.environ, "KIND": "forked or not", "TMPDIR": str(tmp_path)}
    started = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=False)
    forked = run_forked(words, env=environment)
    assert forked.returncode == started.returncode
    assert forked.stdout == started.stdout
    assert forked.stderr == started.stderr


def test_it_is_a_process_and_a_group_of_its_own_that_hears_signals(tmp_path):
    (tmp_path / "script.py").write_text(
        "import os, time\nprint(os.getpid(), os.getpgid(0), flush=True)\ntime.sleep(900)"
    )
    process = Forked(["script.py"], start_new_session=True)
    assert process.stdout.readline().split() == [str(process.pid)] * 2
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGTERM)
    assert process.communicate(PATIENCE_S) == ("", "")
    assert process.returncode == -signal.SIGTERM
