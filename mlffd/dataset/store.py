# SPDX-License-Identifier: MIT
"""A label file in the making.

While labelling runs, every labelled frame is a small file of its own beside the label file, in
`<output>.parts`, each written whole or not at all; so a kill at any moment costs the frames under
way and nothing else. When all frames are in, they are joined into the HDF5 file in frame order:
its bytes do not depend on who labelled what when.
"""

import hashlib
import json
import shutil
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from mlffd.dataset.label_file import (
    VERSION_KEY,
    LabelledSet,
    difference_of_teachers,
    frame_record,
    join_labels,
    read_labels,
    read_records,
    write_labels,
)
from mlffd.errors import LabelError
from mlffd.evaluation import state_of
from mlffd.files import lock, replacing, write_atomically

__all__ = ["LabelStore", "LabelledSet", "frames_hash", "join_labels", "read_labels"]

BEGIN = "begin.json"  # what is being labelled by whom; parts without it belong to nothing


class LabelStore:
    """A label file in the making: labels come in one at a time, in any order, and outlive a kill."""

    def __init__(self, path):
        self.path = Path(path)
        self.parts = self.path.with_name(self.path.name + ".parts")
        self.retrying = False

    @contextmanager
    def locked(self):
        """Nobody else labels into this file during the block; LabelError if somebody does."""
        self.parts.mkdir(parents=True, exist_ok=True)
        with lock(self.parts / "lock") as free:
            if not free:
                raise LabelError(f"another process labels into {self.path}: wait for its end")
            try:
                yield
            finally:
                self._clear_leftovers()

    def begin(self, metadata, retry_failed=False):
        """Start a label file for `metadata`, or go on with the one begun; LabelError if it was another.

        A run that has not labelled one frame yet is no obstacle to another. With `retry_failed` the frames
        that have failed so far are to be labelled again.
        """
        metadata = json.loads(json.dumps(metadata))
        if self._finished is not None and _identity(self._finished.metadata) != metadata:
            raise LabelError(_difference(self.path, self._finished.metadata, metadata))
        begun = self._begun()
        if begun is not None and begun != metadata:
            if any(self._parts("npz")):
                raise LabelError(_difference(self.path, begun, metadata))
            shutil.rmtree(self.parts)
            begun = None
        to_retry = retry_failed and self._finished is not None and self._finished.metadata["failed"]
        if begun is None and (self._finished is None or to_retry):
            self.parts.mkdir(parents=True, exist_ok=True)
            write_atomically(self.parts / BEGIN, json.dumps(metadata, sort_keys=True))
        self.retrying = retry_failed
        for failure in self._parts("json") if retry_failed else ():
            failure.unlink()

    @cached_property
    def _finished(self):
        """The LabelledSet of the file as it was found, None if there was none."""
        return read_labels(self.path) if self.path.exists() else None

    def _begun(self):
        try:
            return json.loads((self.parts / BEGIN).read_text())
        except FileNotFoundError:
            return None

    def _parts(self, suffix):
        """Files of labelled ("npz") or failed ("json") frames, in frame order."""
        return sorted(self.parts.glob(f"[0-9]*.{suffix}"))

    def _clear_leftovers(self):
        """Remove the parts if they belong to nothing: a kill may have come while they were being removed."""
        if not (self.parts / BEGIN).exists():
            shutil.rmtree(self.parts, ignore_errors=True)

    def done(self):
        """Numbers of the frames that are labelled or have failed."""
        done = {int(part.stem) for suffix in ("npz", "json") for part in self._parts(suffix)}
        if self._finished is not None:
            done |= set(map(int, self._finished.frame_idx))
            done |= set() if self.retrying else set(map(int, self._finished.metadata["failed"]))
        return done

    def counts(self):
        """(labelled, failed) frames so far."""
        labelled = {int(part.stem) for part in self._parts("npz")}
        failed = {int(part.stem) for part in self._parts("json")}
        if self._finished is not None:
            labelled |= set(map(int, self._finished.frame_idx))
            failed |= set(map(int, self._finished.metadata["failed"]))
        return len(labelled), len(failed - labelled)

    def add(self, number, atoms, energy, forces, stress, hessian=None):
        """Keep the label of frame `number`; see label_file.LabelledSet for shapes and units.

        Raises LabelError if it is not finite (a stress may be nan throughout) or has the wrong shape.
        """
        record = frame_record(number, atoms, energy, forces, stress, hessian)
        arrays = {**record, "info": np.array(record["info"])}
        with replacing(self.parts / f"{number:07d}.npz") as part, open(part, "wb") as file:
            np.savez(file, **arrays)

    def fail(self, number, reason):
        """Record that frame `number` could not be labelled, and why."""
        write_atomically(self.parts / f"{number:07d}.json", json.dumps({"reason": reason}))

    def finish(self):
        """Join all parts, and what the file held already, into the HDF5 file and remove them; its hash."""
        if self._begun() is None:
            return self._finished.hash
        records, metadata = self._records(), {**self._begun(), "failed": self._failures()}
        metadata["failed"] = {n: why for n, why in metadata["failed"].items() if int(n) not in records}
        if not records:
            shutil.rmtree(self.parts)  # so that it does not stand in the way of a corrected command
            reason = next(iter(metadata["failed"].values()), "nothing")
            raise LabelError(f"not one frame could be labelled; the first said: {reason}")
        write_labels(self.path, [records[number] for number in sorted(records)], metadata)
        written = read_labels(self.path)  # what is on the disk now must be good before the parts go
        (self.parts / BEGIN).unlink()
        shutil.rmtree(self.parts, ignore_errors=True)
        self.__dict__["_finished"] = written
        return written.hash

    def _records(self):
        """Frame number -> record, of the file and of the parts."""
        records = {} if self._finished is None else {r["frame_idx"]: r for r in read_records(self.path)[0]}
        return records | {int(part.stem): _read_part(part) for part in self._parts("npz")}

    def _failures(self):
        """Frame number as text -> reason; the last one counts."""
        before = {} if self._finished is None else self._finished.metadata["failed"]
        now = {str(int(p.stem)): json.loads(p.read_text())["reason"] for p in self._parts("json")}
        return before | now


def frames_hash(frames):
    """sha256 of what is to be labelled: species, positions, cells, pbc, charges and spins of all frames, in
    order."""
    digest = hashlib.sha256()
    for atoms in frames:
        for array in (atoms.numbers.astype("<i8"), atoms.positions, atoms.cell.array, atoms.pbc):
            digest.update(np.ascontiguousarray(array).tobytes())
        state = {key: str(value) for key, value in state_of(atoms).items()}
        if state:  # frames that say nothing of it keep the hash they had
            digest.update(json.dumps(state, sort_keys=True).encode())
    return digest.hexdigest()


def _identity(metadata):
    """What of a file's metadata was known when it was begun."""
    return {key: value for key, value in metadata.items() if key not in ("failed", VERSION_KEY)}


def _read_part(path):
    try:
        with np.load(path, allow_pickle=False) as part:
            arrays = {key: part[key] for key in part}
            return {**arrays, "frame_idx": int(path.stem), "info": str(arrays["info"])}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        path.unlink()
        why = f"{path} was damaged ({error}) and is removed"
        raise LabelError(f"{why}: run again to label it again") from error


def _difference(path, begun, metadata):
    begun = _identity(begun)
    if begun.get("frames") != metadata.get("frames"):
        what = f"other frames ({begun.get('n_frames')} of them, now {metadata.get('n_frames')})"
    elif begun.get("teacher") != metadata.get("teacher"):
        what = difference_of_teachers(begun, metadata)
    else:
        differing = sorted(key for key in {*begun, *metadata} if begun.get(key) != metadata.get(key))
        what = ", ".join(f"{key} {begun.get(key)!r}, now {metadata.get(key)!r}" for key in differing)
    return f"{path} was begun with {what}: choose another output or delete it and {path.name}.parts"
