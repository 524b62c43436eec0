"""The main loop of a process that has been started for a test: it runs the cases that the test sends."""

import sys
import warnings
from multiprocessing.connection import Client

import torch.distributed as dist

from vision3d_engine.core.cli import ignore_command_line


def serve(run):
    """Send back what ``run(case)`` returns, or the error that it ends with, until the test sends None."""
    warnings.simplefilter("ignore")
    ignore_command_line()
    dist.init_process_group("gloo")
    connection = Client(("localhost", int(sys.argv[1])), authkey=b"test")
    connection.send(dist.get_rank())
    while (case := connection.recv()) is not None:
        try:
            connection.send(run(case))
        except Exception as error:  # noqa: BLE001  the test decides
            connection.send({"error": f"{type(error).__name__}: {error}"})
