# SPDX-License-Identifier: MIT
"""Trajectories for a report: written in chunks, each whole or not at all, and gone on with.

A chunk begins with neighbor lists of its own, so that a run that was killed anywhere ends with the very
numbers of one that was not.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from ase import Atoms
from tqdm import tqdm

from mlffd.dataset.starts import bare
from mlffd.dataset.store import LabelStore, frames_hash
from mlffd.dynamics import Trajectories
from mlffd.errors import MlffdError
from mlffd.evaluation import Evaluate
from mlffd.files import lock, replacing

SERIES = ("positions", "forces", "energies", "stresses", "conserved", "temperatures")
# begins dynamics: structures, their seeds, steps done before
Begin = Callable[[list[Atoms], list[int], int], Trajectories]


@dataclass(frozen=True)
class Recording:
    """One replica along a trajectory.

    start, end: Atoms with momenta; steps (n_frames,); positions and forces (n_frames, n_atoms, 3) Å, eV/Å;
    energies and conserved (n_frames,) eV; stresses (n_frames, 3, 3) eV/Å^3, ASE's sign; temperatures
    (n_frames,) K; cut: why it was cut, or None; frames end before that.
    """

    start: Atoms
    end: Atoms
    steps: np.ndarray
    positions: np.ndarray
    forces: np.ndarray
    energies: np.ndarray
    stresses: np.ndarray
    conserved: np.ndarray
    temperatures: np.ndarray
    cut: str | None

    def __len__(self) -> int:
        return len(self.steps)

    def after(self, step: int) -> "Recording":
        """Frames later than ``step``."""
        kept = self.steps > step
        return replace(self, steps=self.steps[kept], **{name: getattr(self, name)[kept] for name in SERIES})

    def thinned(self, n_frames: int) -> "Recording":
        """Every k-th frame, the last one among them: ``n_frames`` at most."""
        stride = max(-(-len(self) // n_frames), 1)
        kept = np.arange(len(self) - 1, -1, -stride)[::-1]
        return replace(self, steps=self.steps[kept], **{name: getattr(self, name)[kept] for name in SERIES})

    def frame(self, k: int) -> Atoms:
        """A bare structure."""
        atoms = bare(self.start)
        atoms.positions = self.positions[k]
        return atoms


class Remembering:
    """An ``Evaluate`` that does not repeat what it was asked last: each chunk begins where one ended."""

    def __init__(self, evaluate: Evaluate):
        self.evaluate = evaluate
        self.last: dict[bytes, object] = {}

    def __call__(self, structures: Sequence[Atoms]) -> list:
        keys = [b"".join(a.tobytes() for a in (s.numbers, s.positions, s.cell.array)) for s in structures]
        new = [k for k, key in enumerate(keys) if key not in self.last]
        found = self.evaluate([structures[k] for k in new]) if new else []
        answers = {**self.last, **{keys[k]: answer for k, answer in zip(new, found)}}
        self.last = {key: answers[key] for key in keys}
        return [answers[key] for key in keys]


def record(
    folder: Path,
    starts: Sequence[Atoms],
    begin: Begin,
    n_steps: int,
    every: int,
    chunk: int,
    seed: int,
    title: str,
) -> list[Recording]:
    """Run replicas from ``starts`` for ``n_steps``, with a frame every ``every`` steps.

    ``folder`` keeps chunks of ``chunk`` steps (a multiple of ``every``); what is there is not run again.

    Raises:
        MlffdError: a chunk on disk is damaged, or another process runs this trajectory.
        What ``begin`` raises.
    """
    folder.mkdir(parents=True, exist_ok=True)
    replicas = [Recording(atoms, atoms, *empty_series(len(atoms)), None) for atoms in starts]
    n_steps -= n_steps % every
    ends = [(first, min(first + chunk, n_steps)) for first in range(0, n_steps, chunk)]
    paths = [folder / f"steps_{first:09d}_{last:09d}.npz" for first, last in ends]
    with alone_in(folder, paths), tqdm(total=n_steps, unit="step", desc=title) as progress:
        for (first, last), path in zip(ends, paths):
            if not path.exists():
                write_chunk(path, run_chunk(replicas, begin, first, last, every, seed, progress))
            replicas = [joined(replica, part) for replica, part in zip(replicas, read_chunk(path, replicas))]
            progress.update(last - progress.n)
    return replicas


@contextmanager
def alone_in(folder: Path, paths: Sequence[Path]) -> Iterator[None]:
    """Where some of the files are missing, no other process is to write them meanwhile."""
    if all(path.exists() for path in paths):
        yield
        return
    with lock(folder / ".lock") as free:
        if not free:
            raise MlffdError(f"another process runs the trajectory in {folder}: wait for its end")
        yield


def empty_series(n_atoms: int) -> tuple[np.ndarray, ...]:
    """Steps and the series of a recording without frames."""
    shapes = ((n_atoms, 3), (n_atoms, 3), (), (3, 3), (), ())
    return np.zeros(0, dtype=int), *(np.zeros((0, *shape)) for shape in shapes)


def run_chunk(
    replicas: Sequence[Recording], begin: Begin, first: int, last: int, every: int, seed: int, progress
) -> list[Recording]:
    """Steps ``first`` to ``last`` of all replicas that were not cut; no frames of the others."""
    parts = [Recording(r.end, r.end, *empty_series(len(r.end)), r.cut) for r in replicas]
    running = [k for k, replica in enumerate(replicas) if replica.cut is None]
    if not running:
        return parts
    dynamics = begin([replicas[k].end for k in running], [seed * 10_000 + k for k in running], first)
    # the heat that the thermostat gave before, which a new run does not know of
    heat = [replicas[k].conserved[-1] - now if len(replicas[k]) else 0.0
            for k, now in zip(running, dynamics.conserved)]  # fmt: skip
    frames = {k: [] for k in running}
    for step in range(first + every, last + 1, every):
        dynamics.run(every)
        progress.update(every)
        for place, k in enumerate(running):
            if dynamics.cut[place] is None:
                frames[k].append((step, *frame_of(dynamics, place, heat[place])))
    for place, k in enumerate(running):
        series = (
            (np.array(values) for values in zip(*frames[k])) if frames[k] else empty_series(len(parts[k].end))
        )
        parts[k] = Recording(parts[k].start, dynamics.structures[place], *series, dynamics.cut[place])
    return parts


def frame_of(dynamics: Trajectories, place: int, heat: float) -> tuple:
    """The series' entries for one replica now; what the slow force says where there is one."""
    slow = dynamics.slow_predictions[place]
    said = dynamics.predictions[place] if slow is None else slow
    return (
        dynamics.structures[place].positions.copy(), said.forces, said.energy, said.stress,
        dynamics.conserved[place] + heat, dynamics.temperatures_now[place],
    )  # fmt: skip


def joined(before: Recording, part: Recording) -> Recording:
    """A recording and what follows it."""
    series = {
        name: np.concatenate([getattr(before, name), getattr(part, name)]) for name in ("steps", *SERIES)
    }
    return replace(before, end=part.end, cut=part.cut, **series)


def write_chunk(path: Path, parts: Sequence[Recording]) -> None:
    """All replicas in one file."""
    arrays = {}
    for k, part in enumerate(parts):
        ends = {"end_positions": part.end.positions, "end_momenta": part.end.get_momenta()}
        series = {name: getattr(part, name) for name in ("steps", *SERIES)}
        arrays |= {f"{k}/{name}": array for name, array in {**ends, **series}.items()}
    arrays["cut"] = np.array(json.dumps([part.cut for part in parts]))
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def read_chunk(path: Path, replicas: Sequence[Recording]) -> list[Recording]:
    """What ``write_chunk`` wrote."""
    try:
        with np.load(path, allow_pickle=False) as file:
            cut = json.loads(str(file["cut"]))
            names = ("end_positions", "end_momenta", "steps", *SERIES)
            parts = [{name: file[f"{k}/{name}"] for name in names} for k in range(len(replicas))]
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise MlffdError(f"{path} is damaged ({error}): delete it and run again") from error
    found = []
    for replica, part, reason in zip(replicas, parts, cut):
        end = replica.start.copy()
        end.positions = part.pop("end_positions")
        end.set_momenta(part.pop("end_momenta"))
        found.append(Recording(replica.end, end, **part, cut=reason))
    return found


def write_labels(path: Path, replicas: Sequence[Recording], teacher: dict, temperature: float) -> None:
    """The teacher's own dynamics as a label file, for others to be judged by.

    Raises:
        LabelError: the file is there and holds something else.
    """
    store = LabelStore(path)
    frames, labels = [], []
    for n, replica in enumerate(replicas):
        for k, step in enumerate(replica.steps.tolist()):
            atoms = replica.frame(k)
            atoms.info |= {"trajectory": f"teacher {n}", "step": step, "temperature": temperature}
            frames.append(atoms)
            labels.append((replica.energies[k], replica.forces[k], replica.stresses[k]))
    with store.locked():
        store.begin({"teacher": teacher, "frames": frames_hash(frames), "n_frames": len(frames)})
        done = store.done()
        for number, (atoms, label) in enumerate(zip(frames, labels)):
            if number not in done:
                store.add(number, atoms, *label)
        store.finish()
