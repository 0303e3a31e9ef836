# SPDX-License-Identifier: MIT
"""Labelling by MPI ranks: `mpiexec -n N mlffd label ...`.

The first rank reads, hands out and writes, and labels through a process of its own; every other rank
labels what it is sent. Nobody waits in MPI's own calls, which would keep a core busy.
"""

import os
import signal
import time

from mlffd.dataset.crew import ANSWER, BROKEN, DIED, READY, ProcessCrew
from mlffd.errors import LabelError, MlffdError

# how launchers tell a process that it is a rank, and of how many: MPICH and Intel, Open MPI, Slurm with PMIx
SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
RANK_VARIABLES = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK")
RECIPE, FRAME, END = "recipe", "frame", "end"  # what the first rank sends
LOOK_EVERY = 0.001  # s


def ranks():
    """mpi4py's communicator of all ranks if a launcher started this process with others, else None.

    Raises LabelError if mpi4py is missing, or belongs to another MPI than the launcher.
    """
    if not any(name in os.environ for name in (*SIZE_VARIABLES, *RANK_VARIABLES)):
        return None
    told = next((int(os.environ[name]) for name in SIZE_VARIABLES if name in os.environ), None)
    if told == 1:
        return None
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        advice = "install mpi4py for this MPI, or leave mpiexec out and say --workers"
        raise LabelError(f"labelling by MPI ranks needs mpi4py ({error}): {advice}") from error
    found = MPI.COMM_WORLD.size
    if told not in (None, found):
        advice = "install mpi4py for the MPI of this mpiexec"
        raise LabelError(f"mpiexec started {told} ranks, but mpi4py sees {found}: {advice}")
    return MPI.COMM_WORLD if found > 1 else None


class RankMember:
    """A rank that labels, and the frame it is at."""

    def __init__(self, comm, rank):
        self.comm, self.rank, self.frame, self.ready = comm, rank, None, False

    def give(self, number, atoms):
        """Let it label frame `number`."""
        self.frame = number
        self.comm.send((FRAME, atoms), self.rank)


class RankCrew:
    """Members on other ranks, and a process of the first rank's own; a context that ends the latter."""

    def __init__(self, comm, recipe, count):
        self.comm = comm
        self.here = ProcessCrew(recipe, 1)
        self.others = [RankMember(comm, rank) for rank in range(1, min(comm.size, count))]
        for member in self.others:
            comm.send((RECIPE, recipe), member.rank)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.here.__exit__(*error)

    @property
    def members(self):
        """All who may be given frames."""
        return self.here.members + self.others

    def events(self):
        """Wait until somebody says something; list of (member, kind, content)."""
        while True:
            events = self.here.events(timeout=LOOK_EVERY)
            while self.comm.iprobe():
                rank, kind, content = self.comm.recv()
                member = next((one for one in self.others if one.rank == rank), None)
                events += [(member, kind, content)] if member else []
            if events:
                return events

    def renew(self, member):
        """Start a process in place of one that died; a rank that is gone stays so."""
        if member in self.others:
            self.others.remove(member)
        else:
            self.here.renew(member)

    def remove(self, member):
        """Do without a member that could not load the teacher."""
        if member in self.others:
            self.others.remove(member)
        else:
            self.here.remove(member)


def dismiss(comm):
    """On the first rank: let all others end."""
    for rank in range(1, comm.size):
        comm.send((END, None), rank)


def serve(comm):
    """On every rank but the first: label what the first one sends until it dismisses us."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the first rank, which then dismisses us
    try:
        _serve(comm)
    except BaseException as error:  # the first rank must not wait for us
        comm.send((comm.rank, DIED, f"rank {comm.rank} died ({type(error).__name__}: {error})"), 0)
        raise


def _serve(comm):
    kind, recipe = _next_message(comm)
    if kind == END:
        return
    try:
        calculator = recipe.load()
    except MlffdError as error:
        comm.send((comm.rank, BROKEN, f"on rank {comm.rank}: {error}"), 0)
        return
    comm.send((comm.rank, READY, None), 0)
    kind, atoms = _next_message(comm)
    while kind == FRAME:
        comm.send((comm.rank, ANSWER, recipe.label(calculator, atoms)), 0)
        kind, atoms = _next_message(comm)


def _next_message(comm):
    while not comm.iprobe(source=0):
        time.sleep(LOOK_EVERY)
    return comm.recv(source=0)
