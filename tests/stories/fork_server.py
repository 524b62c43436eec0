"""The process that forks scripts for `tests.stories.forking`: it has imported what they need, and runs none itself."""

import json
import os
import random
import runpy
import socket
import sys
import tempfile
import threading
import types
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.distributed.run
import torch.utils.tensorboard

import vision3d_engine.commands
import vision3d_engine.core.settings  # noqa: F401  all these are slow to load, as is what the first optimizer needs

torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
BASE_PATH = sys.path[1:]  # without the folder of this file


def serve(requests):
    """Answer requests until nobody is left to ask; return in a process that is to run a script, with its request."""
    while length := socket.recv_fds(requests, 4, 2):
        size, streams, _, _ = length
        if not size:
            os._exit(0)
        request = json.loads(requests.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))
        if "ended" in request:
            requests.sendall(json.dumps(code_of(request["ended"])).encode())
            continue
        if not (pid := os.fork()):
            return request, streams
        requests.sendall(json.dumps(pid).encode())
        for stream in streams:
            os.close(stream)
    raise AssertionError


def code_of(pid):
    """Return the exit code of a process that has ended, None for one that runs."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def become(request, streams):
    """Take on what a started process would have: streams, folder, environment and random numbers."""
    if request["session"]:
        os.setsid()
    for number, stream in enumerate(streams, 1):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    own = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [*own, *(path for path in BASE_PATH if path not in own)]
    if action := os.environ.get("PYTHONWARNINGS"):
        warnings.simplefilter(action)
    tempfile.tempdir = None  # found anew, by the environment
    random.seed()
    np.random.seed()  # noqa: NPY002


def run(words):
    """Run a script, or a module, as python does."""
    if words[0] == "-m":
        sys.argv, sys.path[:] = words[1:], [str(Path.cwd()), *sys.path]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        return
    script = Path(words[0]).absolute()
    sys.argv, sys.path[:] = words, [str(script.resolve().parent), *sys.path]
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    module.__file__, module.__builtins__ = str(script), __builtins__
    code = compile(script.read_bytes(), script, "exec")
    try:
        exec(code, module.__dict__)
    except Exception as error:  # noqa: BLE001  it is shown without the lines of this file
        sys.excepthook(type(error), error.with_traceback(error.__traceback__.tb_next), None)
        sys.exit(1)


if __name__ == "__main__":
    assert threading.active_count() == 1, "what is forked would lack the other threads"
    requests = socket.socket(fileno=int(sys.argv[1]))
    request, streams = serve(requests)
    requests.close()
    become(request, streams)
    run(request["words"])
