# SPDX-License-Identifier: MIT
"""Labelling processes on this machine: each holds the teacher and labels what comes down its pipe."""

import multiprocessing
import os
import signal
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait

from mlffd.dataset.evaluate import THREAD_COUNTS
from mlffd.errors import MlffdError

# what members tell: they hold the teacher; or why they never will; an answer; or that they are gone
READY, BROKEN, ANSWER, DIED = "ready", "broken", "answer", "died"
# variables by which a launcher tells a process that it is a rank; a process started by a rank is none
RANK_VARIABLES = ("PMI", "PMIX", "OMPI_", "PRTE_", "HYDI_", "HYDRA_", "MPI_LOCAL", "MPIR_", "MPIEXEC_")


class ProcessMember:
    """A process that labels, our end of its pipe, and the frame it is at."""

    def __init__(self, recipe):
        self.recipe, self.frame, self.ready = recipe, None, False
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, recipe), daemon=True)
        with _environment_of_workers():
            self.process.start()
        theirs.close()  # so that only the process holds it, and its death closes the pipe

    def give(self, number, atoms):
        """Let it label frame `number`."""
        self.frame = number
        with suppress(BrokenPipeError, ConnectionResetError):  # its death is found when its answer is read
            self.pipe.send(atoms)

    def event(self):
        """(kind, content) of what it says, after it has said something."""
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join(5)
            return DIED, f"its labelling process died (exit code {self.process.exitcode}; out of memory?)"

    def renewed(self):
        """Another one in place of this one, which is dead."""
        self.end()
        return ProcessMember(self.recipe)

    def end(self):
        """An idle process ends by itself when its pipe closes; a busy one is not waited for."""
        self.pipe.close()
        if self.ready and self.frame is None:
            self.process.join(10)
        self.process.terminate()
        self.process.join()


class ProcessCrew:
    """Members that are processes here; a context that ends them."""

    def __init__(self, recipe, count):
        self.members = []
        try:
            for _ in range(count):
                self.members.append(ProcessMember(recipe))
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for member in self.members:
            member.end()

    def events(self, timeout=None):
        """Wait until somebody says something, at most `timeout` seconds; list of (member, kind, content)."""
        by_pipe = {member.pipe: member for member in self.members}
        return [(by_pipe[pipe], *by_pipe[pipe].event()) for pipe in wait(list(by_pipe), timeout)]

    def renew(self, member):
        """Start a process in place of one that died."""
        self.members[self.members.index(member)] = member.renewed()

    def remove(self, member):
        """Do without a process that could not load the teacher."""
        self.members.remove(member)
        member.end()


@contextmanager
def _environment_of_workers():
    """Processes started now have one thread each and are no ranks of an MPI program."""
    before = dict(os.environ)
    try:
        for name in [name for name in before if name.startswith(RANK_VARIABLES)]:
            del os.environ[name]
        os.environ.update(dict.fromkeys(THREAD_COUNTS, "1"))
        yield
    finally:
        os.environ.update(before)
        for name in set(os.environ) - set(before):
            del os.environ[name]


def _work(pipe, recipe):
    """In the process: label what comes down the pipe until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the pipe
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            calculator = recipe.load()
        except MlffdError as error:
            pipe.send((BROKEN, str(error)))
            return
        pipe.send((READY, None))
        while True:
            pipe.send((ANSWER, recipe.label(calculator, pipe.recv())))
