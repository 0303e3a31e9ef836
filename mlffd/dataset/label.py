# SPDX-License-Identifier: MIT
"""Label frames with a teacher: several one-thread processes or MPI ranks, resumable, nothing dropped."""

import sys
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tqdm import tqdm

from mlffd.dataset import mpi
from mlffd.dataset.audit import check_structures
from mlffd.dataset.crew import BROKEN, DIED, READY, ProcessCrew
from mlffd.dataset.evaluate import DISPLACEMENT, Recipe
from mlffd.dataset.frames import read_frames
from mlffd.dataset.store import LabelStore, frames_hash
from mlffd.errors import ConfigError, LabelError
from mlffd.teachers import load_teacher

WARNINGS_SHOWN = 5  # of the audit
DEATHS_IN_A_ROW = 5  # of labelling processes, without a label in between: the frames are not to blame


def label(
    frames, teacher, output, workers=1, directory=".", device="cpu", retry_failed=False, hessian_rows=0
):
    """Label every structure in `frames` (any file ASE reads) with `teacher`; the hash of the labels.

    `teacher` is a name or table for load_teacher; files it names are relative to `directory`.
    `output` is the HDF5 label file (see label_file.py). Called again after a kill, it labels only what is
    missing. A frame that the teacher cannot label is recorded with the reason; `retry_failed` labels such
    frames again. `hessian_rows` random rows of the Hessian of every frame are stored with its label; each
    costs two more evaluations.
    Under mpiexec all ranks call this, and all but the first get None.
    Raises LabelError if the frames cannot be read, or if they or the teacher differ from those that
    `output` was begun with; ConfigError for numbers that cannot be meant.
    """
    recipe = Recipe(teacher, device, str(directory), hessian_rows)
    comm = mpi.ranks()
    if comm is None:
        return _label(Path(frames), recipe, output, workers, retry_failed, ProcessCrew)
    if comm.rank > 0:
        return mpi.serve(comm)
    try:
        if workers != 1:
            raise ConfigError(f"with mpiexec every rank is one worker: leave out workers = {workers}")
        crew = partial(mpi.RankCrew, comm)
        return _label(Path(frames), recipe, output, comm.size, retry_failed, crew)
    finally:
        mpi.dismiss(comm)


def _label(frames, recipe, output, workers, retry_failed, start_crew):
    _check_number("workers", workers, 1)
    _check_number("hessian_rows", recipe.n_hessian_rows, 0)
    structures = read_frames(frames)
    teacher = load_teacher(recipe.teacher, device=recipe.device, directory=recipe.directory)
    store = LabelStore(output)
    if retry_failed or not store.path.exists():
        _audit(structures, teacher)
    with store.locked(), _stopping_in_one_line(store):
        store.begin(_identity(structures, teacher, recipe.n_hessian_rows), retry_failed)
        missing = sorted(set(range(len(structures))) - store.done())
        start = time.monotonic()
        if missing:
            with start_crew(recipe, min(workers, len(missing))) as crew:
                _Labelling(structures, missing, store, crew).run()
        content_hash = store.finish()
    _summarize(store, len(missing), time.monotonic() - start)
    return content_hash


def _audit(structures, teacher):
    """Refuse frames that cannot be meant before anything is paid for; say what is odd about others."""
    warnings = check_structures(structures, teacher)
    for warning in warnings[:WARNINGS_SHOWN]:
        print(warning, file=sys.stderr)
    if len(warnings) > WARNINGS_SHOWN:
        print(f"and {len(warnings) - WARNINGS_SHOWN} more warnings", file=sys.stderr)


@contextmanager
def _stopping_in_one_line(store):
    try:
        yield
    except OSError as error:  # a full disk is no fault of the frame that came next
        why = error.strerror or error
        kept = "what is labelled is kept, run again to go on"
        raise LabelError(f"labelling into {store.path} stopped: {why}; {kept}") from error


def _check_number(name, value, least):
    if not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, not {value!r}")


def _identity(structures, teacher, n_hessian_rows):
    """What a label file is begun with: the same again goes on with it."""
    metadata = {"teacher": teacher.description(), "frames": frames_hash(structures)}
    if n_hessian_rows:
        metadata["hessian_rows"] = {"a_frame": n_hessian_rows, "displacement": DISPLACEMENT}
    return {**metadata, "n_frames": len(structures)}


def _summarize(store, n_now, seconds):
    labelled, failed = store.counts()
    parts = [f"labelled {labelled} frames, {failed} failed"]
    if n_now:
        parts.append(f"{n_now} of them now, {seconds / n_now:.3g} s a frame")
    if failed:
        parts.append("mlffd labels show tells why, mlffd label --retry-failed tries those again")
    print("; ".join(parts), file=sys.stderr)


@dataclass
class _Labelling:
    """Hands out the missing frames one at a time and stores each label as it comes back."""

    structures: list
    missing: list
    store: LabelStore
    crew: object  # ProcessCrew or RankCrew
    once_more: list = field(default_factory=list)  # frames at which a process died
    killers: set = field(default_factory=set)  # all such frames so far
    deaths: int = 0  # in a row
    reason: str = ""  # the latest why a member did not start

    def run(self):
        """Until every frame is labelled or has failed; LabelError if nobody is left who could."""
        self.queue = deque(self.missing)
        total = len(self.structures)
        terminal = sys.stderr.isatty()
        with tqdm(
            total=total, initial=total - len(self.missing), unit="frame", desc="labelling", smoothing=0.05,
            mininterval=0.1 if terminal else 10.0,
        ) as self.progress:  # fmt: skip
            self._hand_out()
            while self.queue or self.once_more or self._busy():
                if not self.crew.members:
                    raise LabelError(f"no labelling process could load the teacher: {self.reason}")
                for member, kind, content in self.crew.events():
                    self._hear(member, kind, content)
                self._hand_out()

    def _busy(self):
        return [member for member in self.crew.members if member.frame is not None]

    def _hand_out(self):
        for member in self.crew.members:
            if member.ready and member.frame is None:
                number = self._next_frame()
                if number is not None:
                    member.give(number, self.structures[number])

    def _next_frame(self):
        busy = self._busy()
        if any(member.frame in self.killers for member in busy):
            return None  # it is to be alone, with all memory for itself
        if self.once_more:
            return None if busy else self.once_more.pop()
        return self.queue.popleft() if self.queue else None

    def _hear(self, member, kind, content):
        if kind == READY:
            member.ready = True
        elif kind == BROKEN or (kind == DIED and not member.ready):
            self.reason = content
            self._say(f"a labelling process did not start: {content}")
            self.crew.remove(member)
        elif kind == DIED:
            self._bury(member, content)
        else:
            number, member.frame = member.frame, None
            self._keep(number, *content)
            self.deaths = 0

    def _bury(self, member, reason):
        """Renew a process that died; its frame is tried once more, alone, then it has failed."""
        number = member.frame
        self.crew.renew(member)
        self.deaths += 1
        if number in self.killers:
            self._keep(number, None, reason)
        elif number is not None:
            self._say(f"frame {number}: {reason}; it is tried once more, alone")
            self.once_more.append(number)
            self.killers.add(number)
        if self.deaths >= DEATHS_IN_A_ROW:
            raise LabelError(
                f"{self.deaths} labelling processes died in a row, the last at frame {number}: {reason};"
                " what is labelled is kept; run again, perhaps with fewer workers"
            )

    def _keep(self, number, found, reason):
        if reason is None:
            try:
                self.store.add(number, self.structures[number], *found)
            except LabelError as error:
                reason = str(error)
        if reason is not None:
            self.store.fail(number, reason)
            self._say(f"frame {number} failed: {reason}")
        self.progress.update()

    def _say(self, text):
        self.progress.write(text, file=sys.stderr)
