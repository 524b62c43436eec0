"""What the environment says about who has started this process: torchrun, Kubernetes, mpirun, srun, or nobody."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from vision3d_engine.core.errors import ConfigError, listed

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_MPIRUN = {
    "RANK": "OMPI_COMM_WORLD_RANK",
    "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
    "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
}
_FIRST_PORT, _PORTS = 20000, 10000  # below the ports that Linux hands out by itself


@dataclass(frozen=True)
class Launch:
    """Who this process is, in the words of its launcher.

    Attributes:
        rank: number of this process among all.
        size: number of processes.
        local_rank: number of this process on its machine; None when the launcher does not say.
        host: machine of the store that brings the processes together.
        port: port of that store.
        is_store_open: the launcher holds the store, over all attempts; otherwise the main process opens one.
        is_on_one_machine: so are all processes.
        restarts: how often the launcher says it has started the processes again.
        name: the same for all attempts of one launch, and for no other launch.
    """

    rank: int
    size: int
    local_rank: int | None
    host: str
    port: int
    is_store_open: bool = False
    is_on_one_machine: bool = False
    restarts: int = 0
    name: str = ""


def find_launch() -> Launch | None:
    """Return what the launcher's variables say, or None for a process that was started alone.

    Raises:
        ConfigError: when some of them are missing, or they contradict each other.
    """
    if {*_NEEDED, "LOCAL_RANK"} <= os.environ.keys():
        return _stated()
    return _slurm() or _stated()


def stated_local_rank(rank: int = 0, size: int = 1) -> int | None:
    """Return the number of this process on its machine, or None when no launcher speaks of this rank and size."""
    slurm, env = _slurm(), _variables()
    if slurm is not None and (slurm.rank, slurm.size) == (rank, size):
        return slurm.local_rank
    is_ours = (env.get("RANK", "0"), env.get("WORLD_SIZE", "1")) == (str(rank), str(size))
    return _number(env, "LOCAL_RANK") if is_ours and "LOCAL_RANK" in env else None


def slurm_job() -> str | None:
    """Return the number of the SLURM job of this process, or None."""
    return os.environ.get("SLURM_JOB_ID")


def wants_full_tracebacks() -> bool:
    """Tell whether a person wants to see the engine's own lines in tracebacks."""
    return os.environ.get("VISION3D_FULL_TRACEBACK", "") not in {"", "0"}


def names_debugger() -> bool:
    """Tell whether a person has chosen by ``PYTHONBREAKPOINT`` what ``breakpoint()`` does."""
    return bool(os.environ.get("PYTHONBREAKPOINT"))


def _variables() -> dict[str, str]:
    """Return the variables that torchrun sets, as far as they are there; those of Open MPI under torchrun's names."""
    env = os.environ
    found = {name: env.get(name) or env.get(_MPIRUN.get(name, "")) for name in (*_NEEDED, "LOCAL_RANK")}
    return {name: value for name, value in found.items() if value}


def _stated() -> Launch | None:
    """Read what torchrun says, or whoever sets the variables of torch's ``env://``."""
    variables, env = _variables(), os.environ
    if not variables.keys() & {"RANK", "WORLD_SIZE"}:
        return None
    missing = [name for name in _NEEDED if name not in variables]
    if missing and variables.get("WORLD_SIZE") == "1":
        return None
    _check(variables, missing)
    host, port = variables["MASTER_ADDR"], _number(variables, "MASTER_PORT")
    is_store_open = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    name = env.get("TORCHELASTIC_RUN_ID", "")
    return Launch(
        rank=_number(variables, "RANK"),
        size=_number(variables, "WORLD_SIZE"),
        local_rank=_number(variables, "LOCAL_RANK") if "LOCAL_RANK" in variables else None,
        host=host,
        port=port,
        is_store_open=is_store_open,
        is_on_one_machine=env.get("LOCAL_WORLD_SIZE") == variables["WORLD_SIZE"],
        restarts=int(env.get("TORCHELASTIC_RESTART_COUNT", "0")),
        name=f"{name} {host}:{port}" if is_store_open else name,
    )


def _check(variables: Mapping[str, str], missing: list[str]) -> None:
    """Refuse what would train as several runs that know nothing of each other, or wait for a rank that never comes."""
    found = listed(f"{name}={value}" for name, value in variables.items())
    if missing:
        message = (
            f"the environment has {found}, but not {listed(missing)}: it says that this process is one of several, "
            "not how they find each other. Start it by torchrun, set all of RANK, WORLD_SIZE, MASTER_ADDR and "
            "MASTER_PORT, or, for a process alone, unset RANK and WORLD_SIZE"
        )
        raise ConfigError(message)
    if _number(variables, "RANK") >= _number(variables, "WORLD_SIZE"):
        message = f"the environment has {found}; RANK counts from 0, so it must be below WORLD_SIZE"
        raise ConfigError(message)


def _number(variables: Mapping[str, str], name: str) -> int:
    if not variables[name].isdecimal():
        message = f"the environment has {name}={variables[name]}; it must be a whole number, 0 or more"
        raise ConfigError(message)
    return int(variables[name])


def _slurm() -> Launch | None:
    """Read what ``srun`` says to each of its tasks; a shell of ``sbatch``, ``salloc`` or ``srun --pty`` is alone."""
    env = os.environ
    size = int(env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS") or 1)
    if size == 1 or "SLURM_PTY_PORT" in env or not {"SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_ID"} <= env.keys():
        return None
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or "localhost"
    job, step = int(env.get("SLURM_JOB_ID", "0")), int(env["SLURM_STEP_ID"])
    return Launch(
        rank=int(env["SLURM_PROCID"]),
        size=size,
        local_rank=int(env["SLURM_LOCALID"]),
        host=env.get("MASTER_ADDR") or first_host(nodes),
        port=int(env.get("MASTER_PORT") or _FIRST_PORT + (10 * job + step) % _PORTS),
        name=f"slurm {job}.{step}",
    )


def first_host(nodes: str) -> str:
    """Return the first machine of a SLURM list: ``node[01-03,07],other5`` begins with ``node01``."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first.group() if first else nodes)
