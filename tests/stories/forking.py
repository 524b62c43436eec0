"""Scripts as real processes that are forked, where a start by itself is not what is tested.

To import torch, the engine and what an optimizer needs costs a process seconds. A server of each process of pytest has
done so once; what it forks has its own number, signals, folder, environment and streams, and ends as any other process.
The seed of hashes is shared, as is what is imported.
"""

import atexit
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT

SERVER = Path(__file__).parent / "fork_server.py"
LOOK_EVERY_S = 0.01


class Server:
    """The process that forks scripts; it ends with this one."""

    def __init__(self):
        self._socket, its_socket = socket.socketpair()
        self._lock = threading.Lock()
        with its_socket:
            command = [sys.executable, str(SERVER), str(its_socket.fileno())]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            streams = {"stdin": DEVNULL, "stdout": DEVNULL}
            self._process = subprocess.Popen(command, env=environment, pass_fds=[its_socket.fileno()], **streams)
        atexit.register(self.close)

    def ask(self, streams=(), **request):
        """Return what it answers; the streams are files of this process."""
        with self._lock:
            message = json.dumps(request).encode()
            socket.send_fds(self._socket, [len(message).to_bytes(4, "big")], list(streams))
            self._socket.sendall(message)
            return json.loads(self._socket.recv(100))

    def close(self):
        self._socket.close()
        self._process.wait()


@functools.cache
def server():
    """Return the server of this process, started at the first call."""
    return Server()


class Forked:
    """A script, or a module after ``-m``, that has been forked; used as a `subprocess.Popen` with text."""

    def __init__(self, words, env=None, cwd=None, stdout=PIPE, stderr=PIPE, start_new_session=False):
        self.args, self.returncode = [str(word) for word in words], None
        request = {"words": self.args, "environment": dict(env or os.environ), "session": start_new_session}
        self.stdout, its_stdout = _stream(stdout)
        self.stderr, its_stderr = (None, os.dup(its_stdout)) if stderr == STDOUT else _stream(stderr)
        self.pid = server().ask([its_stdout, its_stderr], **request, folder=str(cwd or Path.cwd()))
        os.close(its_stdout)
        os.close(its_stderr)

    def poll(self):
        """Return the exit code, None while it runs."""
        if self.returncode is None:
            self.returncode = server().ask(ended=self.pid)
        return self.returncode

    def wait(self, timeout=None):
        patience = time.monotonic() + (timeout or float("inf"))
        while self.poll() is None:
            if time.monotonic() > patience:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(LOOK_EVERY_S)
        return self.returncode

    def communicate(self, timeout=None):
        """Return the rest of output and errors once it has ended."""
        streams, texts = [stream for stream in (self.stdout, self.stderr) if stream], {}
        readers = [threading.Thread(target=lambda s=s: texts.update({s: s.read()}), daemon=True) for s in streams]
        for reader in readers:
            reader.start()
        patience = time.monotonic() + (timeout or float("inf"))
        for reader in readers:
            reader.join(timeout and max(patience - time.monotonic(), 0))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout)
        self.wait(timeout)
        for stream in streams:
            stream.close()
        return texts.get(self.stdout), texts.get(self.stderr)

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def run_forked(words, timeout=None, **options):
    """Return a forked script that has ended, as `subprocess.run` does."""
    process = Forked(words, **options)
    output, errors = process.communicate(timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def _stream(kind):
    """Return a file to read text from, None where nobody reads, and the descriptor to write to."""
    if kind == DEVNULL:
        return None, os.open(os.devnull, os.O_WRONLY)
    reading, writing = os.pipe()
    return os.fdopen(reading), writing
