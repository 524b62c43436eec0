"""A program on a terminal, for tests in which a person types."""

import os
import pty
import re
import subprocess
import sys
import threading

from tests.patience import PATIENCE_S
from tests.stories.launching import LAUNCHERS


class Terminal:
    """A python program on a terminal of its own, which a person types into.

    Args:
        words: its command line behind ``python``.
        cwd: where it runs.
        variables: of its environment.
    """

    def __init__(self, *words, cwd=None, **variables):
        self._master, slave = pty.openpty()
        left = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
        environment = {**left, "OMP_NUM_THREADS": "1", "TERM": "dumb", **variables}
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), slave)
        command = [sys.executable, *map(str, words)]
        self.process = subprocess.Popen(command, env=environment, cwd=cwd, start_new_session=True, **streams)
        os.close(slave)
        self.seen = ""
        self._patience = threading.Timer(PATIENCE_S, self.process.kill)
        self._patience.start()

    def read_to(self, pattern):
        """Return what is shown up to a pattern that has not been shown before."""
        start = len(self.seen)
        while not re.search(pattern, self.seen[start:], re.MULTILINE):
            assert self._read(), f"the script ended before it said {pattern}:\n{self.seen}"
        return self.seen[start:]

    def type(self, words):
        os.write(self._master, f"{words}\n".encode())

    def end(self):
        """Return exit code and all that was shown."""
        while self._read():
            pass
        self._patience.cancel()
        os.close(self._master)
        return self.process.wait(), self.seen

    def _read(self):
        try:
            chunk = os.read(self._master, 65536)
        except OSError:  # nobody holds the other end any more
            chunk = b""
        self.seen += chunk.decode(errors="replace").replace("\r\n", "\n")
        return chunk
