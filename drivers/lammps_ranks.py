# SPDX-License-Identifier: MIT
"""MPI ranks of a LAMMPS run as seen from the Python inside it: who am I, how many threads, how to end.

LAMMPS has initialized MPI before any of this runs; mpi4py, where it is installed and built for the same
MPI, sees the same ranks. Nothing here is needed in a serial build of LAMMPS.
"""

import ctypes
import os
import sys
import time
import traceback

import numpy as np

from mlffd.errors import ConfigError, MlffdError

# what mpiexec of MPICH, of Open MPI and srun tell a process of its ranks, for builds without mpi4py
_SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
_RANK_VARIABLES = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")


def world():
    """mpi4py's communicator of all ranks; None in a serial run or where mpi4py does not share LAMMPS' MPI."""
    if not mpi_is_running():
        return None
    try:
        import mpi4py

        mpi4py.rc.initialize = False  # LAMMPS has done so; a second MPI must not wake up by import
        from mpi4py import MPI
    except (ImportError, RuntimeError):  # not installed, or its MPI library is not there
        return None
    return MPI.COMM_WORLD if MPI.Is_initialized() else None


def mpi_is_running() -> bool:
    """Whether the MPI library that this process has loaded, if any, is initialized.

    Asked without mpi4py: once mpi4py is imported ASE uses it too, which ends a process that has no MPI.
    """
    flag = ctypes.c_int(0)
    initialized = getattr(ctypes.CDLL(None), "MPI_Initialized", None)
    if initialized is not None:
        initialized(ctypes.byref(flag))
    return bool(flag.value)


def rank_and_size() -> tuple[int, int]:
    """This process' rank and the number of ranks; (0, 1) in a serial run."""
    ranks = world()
    if ranks is not None:
        return ranks.Get_rank(), ranks.Get_size()
    return _from_environment(_RANK_VARIABLES, 0), _from_environment(_SIZE_VARIABLES, 1)


def on_any_rank(flag: bool, communicator) -> bool:
    """Whether ``flag`` is true on a rank of an mpi4py communicator, or None for one rank; COLLECTIVE."""
    if communicator is None:
        return flag
    total = np.zeros(1, np.int32)
    communicator.Allreduce(np.array([flag], np.int32), total)
    return bool(total[0])


def threads_per_rank() -> int:
    """Threads of this rank: MLFFD_THREADS, else OMP_NUM_THREADS, else one, as all of LAMMPS.

    Ranks are how LAMMPS uses many cores. Threads that PyTorch would start on every core of a rank wait for
    each other at every operation, and all but stop when another rank, or anyone, wants a core as well.

    Raises:
        ConfigError: MLFFD_THREADS is not a positive whole number.
    """
    wanted = os.environ.get("MLFFD_THREADS")
    if wanted is None:
        # a list such as 4,2 is for nested loops; the first number counts here
        wanted = os.environ.get("OMP_NUM_THREADS", "1").split(",")[0]
        return int(wanted) if wanted.isdecimal() and int(wanted) > 0 else 1
    if not wanted.isdecimal() or int(wanted) == 0:
        raise ConfigError(f"MLFFD_THREADS is {wanted!r}; set it to a positive whole number or unset it")
    return int(wanted)


TO_BE_READ = 0.5  # s; what mpiexec has not passed on when a rank aborts may be lost


class EndsAllRanks:
    """Context in which an exception on any rank ends all of them: one line, non-zero exit, no hang.

    LAMMPS ends a run by a collective call, so that a rank which fails alone would wait for the others for
    ever. On one rank the exception goes on to LAMMPS, which stops with its own ERROR line; ``also_alone``
    ends that rank too, for callers that cannot pass an exception on.
    """

    def __init__(self, doing: str, also_alone: bool = False):
        self.doing, self.also_alone = doing, also_alone

    def __enter__(self) -> "EndsAllRanks":
        return self

    def __exit__(self, kind, error, trace) -> bool:
        if error is None:
            return False
        rank, n_ranks = rank_and_size()
        if n_ranks > 1:
            time.sleep(2 * min(rank, 1))  # all may have failed alike: rank 0 speaks, and ends the others
        if not isinstance(error, MlffdError):
            traceback.print_exception(kind, error, trace)
        where = f" (rank {rank} of {n_ranks})" if n_ranks > 1 else ""
        new_line = "\n" if n_ranks > 1 else ""  # another rank may be in the middle of a line
        print(f"{new_line}mlffd: {self.doing}{where}: {_one_line(error)}", file=sys.stderr, flush=True)
        if n_ranks > 1 or self.also_alone:
            time.sleep(TO_BE_READ)
            _abort()
        _keep_traceback_quiet(error)
        return False


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, MlffdError) else f"{type(error).__name__}: {text}"


def _abort() -> None:
    sys.stdout.flush()
    ranks = world()
    if ranks is not None:
        ranks.Abort(1)
    os._exit(1)  # mpiexec ends the other ranks of a process that left without finalizing MPI


def _keep_traceback_quiet(error: BaseException) -> None:
    """LAMMPS prints the exception through sys.excepthook; what there is to say has been said."""
    previous = sys.excepthook

    def hook(kind, value, trace):
        sys.excepthook = previous
        if value is not error:
            previous(kind, value, trace)

    sys.excepthook = hook


def _from_environment(names: tuple[str, ...], default: int) -> int:
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdecimal()), default)
