"""Two machines, played by two network namespaces that a cable joins: the cable is cut, and plugged in again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S

SCRIPT = Path(__file__).parent / "noisy_script.py"


def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=False)


def can_make_namespaces():
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    name = f"probe{os.getpid()}"
    if ip("netns", "add", name).returncode:
        return False
    has_cables = ip("-n", name, "link", "add", "cable", "type", "veth", "peer", "name", "other").returncode == 0
    ip("netns", "delete", name)
    return has_cables


class Hosts:
    """Two namespaces with the addresses 10.87.0.1 and 10.87.0.2."""

    def __init__(self):
        self.names = [f"host{number}x{os.getpid()}" for number in range(2)]
        for name in self.names:
            assert ip("netns", "add", name).returncode == 0
        ip("-n", self.names[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", self.names[1])
        for number, name in enumerate(self.names, start=1):
            ip("-n", name, "addr", "add", f"10.87.0.{number}/24", "dev", "cable")
            ip("-n", name, "link", "set", "lo", "up")
        self.plug(True)

    def plug(self, is_in):
        """Plug the cable in, or pull it."""
        for name in self.names:
            assert ip("-n", name, "link", "set", "cable", "up" if is_in else "down").returncode == 0

    def close(self):
        for name in self.names:
            ip("netns", "delete", name)


@pytest.fixture
def hosts():
    if not can_make_namespaces():
        pytest.skip("needs root and iproute2 to make network namespaces")
    hosts = Hosts()
    yield hosts
    hosts.close()


class Agents:
    """A torchrun on each host, with one process each and a folder that both see."""

    def __init__(self, hosts, folder, logs, **settings):
        settings = json.dumps({"save_every": "4 iterations", "heartbeat_s": 5, **settings})
        flags = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-endpoint=10.87.0.1:29400"]
        words = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            *flags,
            str(SCRIPT),
            str(folder),
            "epoch",
            "0.2",
            settings,
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "cable"}
        self.logs = [logs / f"{name}.txt" for name in hosts.names]
        self.processes = []
        for number, (name, log) in enumerate(zip(hosts.names, self.logs, strict=True), start=1):
            own = [
                f"--local-addr=10.87.0.{number}",
                f"--rdzv-conf=is_host={number == 1}",
            ]  # both have one name
            command = ["ip", "netns", "exec", name, *words[:3], *own, *words[3:]]
            with log.open("w") as file:
                streams = {"stdout": file, "stderr": subprocess.STDOUT, "start_new_session": True}
                self.processes.append(subprocess.Popen(command, env=environment, **streams))

    def said(self, number):
        return self.logs[number].read_text()

    def workers(self, number):
        """Return the training processes that are alive."""
        words = ["ps", "-ww", "-o", "stat=,args=", "--ppid", str(self.processes[number].pid)]
        lines = subprocess.run(words, capture_output=True, text=True, check=False).stdout.splitlines()
        return [line for line in lines if SCRIPT.name in line and not line.startswith("Z")]

    def await_all(self, condition):
        """Wait until something holds on both hosts."""
        patience = time.monotonic() + PATIENCE_S
        while not all(condition(number) for number in range(2)):
            if time.monotonic() > patience:
                pytest.fail(f"it hangs:\n{self.said(0)}\n-----\n{self.said(1)}")
            time.sleep(0.1)

    def wait(self):
        """Return exit codes; whatever is left is killed."""
        try:
            return [process.wait(PATIENCE_S) for process in self.processes]
        except subprocess.TimeoutExpired:
            pytest.fail(f"it hangs:\n{self.said(0)}\n-----\n{self.said(1)}")
        finally:
            self.kill()

    def kill(self):
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.mark.slow
def test_a_cable_that_is_pulled_ends_both_sides_with_a_message_and_both_resume(hosts, tmp_path):
    def run(name, **settings):
        logs = tmp_path / f"logs-{name}-{len(settings)}"
        logs.mkdir()
        return Agents(hosts, tmp_path / name, logs, **settings)

    straight = run("straight")
    assert straight.wait() == [0, 0], straight.said(0)
    agents = run("run")
    try:
        agents.await_all(lambda number: "STEP 9" in agents.said(number))
        hosts.plug(False)
        began = time.monotonic()
        agents.await_all(lambda number: not agents.workers(number))
        print(f"all workers ended {time.monotonic() - began:.0f} s after the cut")
        for number in range(2):
            assert "ERROR | process 1 on" in agents.said(number)
        assert " is gone: its last sign of life was in" in agents.said(0)
        assert "the network, or the machine with their store, is gone" in agents.said(1)
        hosts.plug(True)  # a torchrun that is cut off from the other waits for it, longer than its workers
        assert 0 not in agents.wait()
    finally:
        agents.kill()
    again = run("run", resume=True)
    assert again.wait() == [0, 0], again.said(0)
    assert "in mid-epoch" in again.said(0)
    assert again.said(0).partition("RESULT ")[2].split()[0] == straight.said(0).partition("RESULT ")[2].split()[0]
