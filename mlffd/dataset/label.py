# SPDX-License-Identifier: MIT
"""Label frames with a teacher: several one-thread processes, resumable, nothing dropped silently."""

import multiprocessing
import os
import signal
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import ase.io
import numpy as np
from ase.calculators.calculator import PropertyNotImplementedError
from ase.io.formats import UnknownFileTypeError
from tqdm import tqdm

from mlffd.dataset.store import LabelStore, frames_hash
from mlffd.errors import LabelError, MlffdError
from mlffd.teachers import load_teacher

# what a stranger's calculator raises for a frame it cannot do; the frame is recorded as failed
FRAME_FAILURES = (MlffdError, ValueError, ArithmeticError, LookupError, RuntimeError, OSError)
FRAME_FAILURES += (TypeError, AttributeError, AssertionError)
THREAD_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def label(frames, teacher, output, workers=1, directory=".", device="cpu"):
    """Label every structure in `frames` (any file ASE reads) with `teacher`; the hash of the labels.

    `teacher` is a name or table for load_teacher; files it names are relative to `directory`.
    `output` is the HDF5 label file (see store.py). Called again after a kill, it labels only what is
    missing. A frame that the teacher cannot label is recorded with the reason.
    Raises LabelError if the frames cannot be read, or if they or the teacher differ from those that
    `output` was begun with.
    """
    structures = read_frames(Path(frames))
    description = load_teacher(teacher, device=device, directory=directory).description()
    store = LabelStore(output)
    store.begin({"teacher": description, "frames": frames_hash(structures), "n_frames": len(structures)})
    missing = sorted(set(range(len(structures))) - store.done())
    if missing:
        with _one_thread_processes(min(workers, len(missing)), (teacher, device, str(directory))) as crew:
            _label_all(crew, structures, missing, store)
    return store.finish()


def read_frames(path):
    """All structures of a file as a list of ase.Atoms; LabelError if there is none to be read."""
    if not path.is_file():
        raise LabelError(f"no structure file {path}")
    try:
        frames = ase.io.read(path, index=":")
    except (OSError, ValueError, LookupError, UnknownFileTypeError, StopIteration) as error:
        raise LabelError(f"cannot read structures from {path}: {type(error).__name__}: {error}") from error
    if not frames:
        raise LabelError(f"{path} holds no structures")
    return frames


def evaluate(calculator, atoms):
    """Energy (eV), forces (n_atoms, 3) eV/Å and stress (3, 3) eV/Å^3 (nan if there is none) of one structure.

    Where a calculator tells a free energy from an energy, it is the one whose gradient the forces are.
    """
    atoms = atoms.copy()
    atoms.calc = calculator
    forces = atoms.get_forces(apply_constraint=False)  # a frame's frozen atoms still feel their forces
    energy = atoms.get_potential_energy(force_consistent="free_energy" in calculator.implemented_properties)
    return float(energy), np.array(forces, np.float64), _stress(atoms)


def _stress(atoms):
    if atoms.pbc.all() and "stress" in atoms.calc.implemented_properties:
        with suppress(PropertyNotImplementedError):
            return np.array(atoms.get_stress(voigt=False), np.float64)
    return np.full((3, 3), np.nan)


@dataclass
class _Member:
    """One labelling process, our end of its pipe, and the frame it is at."""

    process: BaseProcess
    pipe: Connection
    frame: int | None = None


@contextmanager
def _one_thread_processes(count, teacher):
    """A crew of processes that each hold the teacher; they end with the block, or when we are killed."""
    context = multiprocessing.get_context("spawn")
    before = {name: os.environ.get(name) for name in THREAD_COUNTS}
    crew = []
    try:
        os.environ.update(dict.fromkeys(THREAD_COUNTS, "1"))  # libraries read these when they are loaded
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, teacher), daemon=True)
            process.start()
            theirs.close()  # so that only the process holds it, and its death closes the pipe
            crew.append(_Member(process, ours))
        yield crew
    finally:
        _restore_environment(before)
        for member in crew:
            member.pipe.close()
            _end(member)


def _end(member):
    """An idle process ends by itself when its pipe closes; a busy one is not waited for."""
    if member.frame is None:
        member.process.join(10)
    member.process.terminate()
    member.process.join()


def _restore_environment(before):
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _work(pipe, teacher):
    """In the process: label what comes down the pipe until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the pipe
    spec, device, directory = teacher
    calculator = load_teacher(spec, device=device, directory=directory).calculator
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    with suppress(EOFError, BrokenPipeError):
        while True:
            pipe.send(_label_one(calculator, pipe.recv()))


def _label_one(calculator, atoms):
    """(label, None) or (None, reason)."""
    try:
        return evaluate(calculator, atoms), None
    except FRAME_FAILURES as error:
        return None, f"{type(error).__name__}: {error}"


def _label_all(crew, structures, missing, store):
    """Hand out the missing frames one at a time and store each label as it comes back."""
    queue = iter(missing)
    for member in crew:
        _hand_out(member, queue, structures)
    total = len(structures)
    with tqdm(total=total, initial=total - len(missing), unit="frame", desc="labelling") as progress:
        while busy := {member.pipe: member for member in crew if member.frame is not None}:
            for pipe in wait(list(busy)):
                member = busy[pipe]
                _keep(member, structures, store, progress)
                _hand_out(member, queue, structures)


def _hand_out(member, queue, structures):
    member.frame = next(queue, None)
    if member.frame is not None:
        with suppress(BrokenPipeError):  # a process that died is found out when its answer is read
            member.pipe.send(structures[member.frame])


def _keep(member, structures, store, progress):
    try:
        found, reason = member.pipe.recv()
    except (EOFError, ConnectionResetError) as error:
        member.process.join(5)
        raise LabelError(
            f"a labelling process died at frame {member.frame} (exit code {member.process.exitcode};"
            " out of memory?): what is labelled is kept; run again, perhaps with fewer workers"
        ) from error
    try:
        reason = reason or _refused(store, member.frame, structures[member.frame], found)
        if reason is not None:
            store.fail(member.frame, reason)
            progress.write(f"frame {member.frame} failed: {reason}")
    except OSError as error:  # a full disk is no fault of the frame
        raise LabelError(f"cannot write into {store.parts}: {error.strerror}; run again to go on") from error
    progress.update()


def _refused(store, number, atoms, found):
    """Store a label; why it was refused, or None."""
    try:
        store.add(number, atoms, *found)
    except LabelError as error:
        return str(error)
    return None
