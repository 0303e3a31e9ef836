# SPDX-License-Identifier: MIT
"""The label file: structures with a teacher's energies, forces and stresses, in one HDF5 file.

While labelling runs, every labelled frame is a small file of its own beside the label file, in
`<output>.parts`, each written whole or not at all; so a kill at any moment costs the frames under
way and nothing else. When all frames are in, they are joined into the HDF5 file in frame order:
its bytes do not depend on who labelled what when.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import h5py
import numpy as np
from ase import Atoms

from mlffd.errors import LabelError
from mlffd.files import replacing, write_atomically

FORMAT, FORMAT_NUMBER = "mlffd labels", 1
# per-frame arrays, and arrays that run over the atoms of all frames
FRAME_FIELDS = ("frame_idx", "n_atoms", "cell", "pbc", "energy", "stress")
ATOM_FIELDS = ("atomic_numbers", "positions", "forces")


@dataclass(frozen=True)
class LabelledSet:
    """Labelled structures, in frame order.

    structures: list of ase.Atoms without calculator, info as sampled; energies (n,) eV;
    forces: list of (n_atoms, 3) eV/Å; stresses (n, 3, 3) eV/Å^3 in ASE's sign, nan where the teacher
    gives none; metadata: `teacher` (name, version, licence, settings), `frames` (sha256 of what was to be
    labelled), `n_frames`, `failed` (frame number -> reason); hash: sha256 of all of it.
    """

    structures: list
    energies: np.ndarray
    forces: list
    stresses: np.ndarray
    metadata: dict
    hash: str

    def __len__(self):
        return len(self.structures)


class LabelStore:
    """A label file in the making: labels come in one at a time, in any order, and outlive a kill."""

    def __init__(self, path):
        self.path = Path(path)
        self.parts = self.path.with_name(self.path.name + ".parts")

    def begin(self, metadata):
        """Start a label file for `metadata`, or go on with the one begun; LabelError if it was another."""
        begun = self._begun()
        if begun is None:
            self.parts.mkdir(parents=True, exist_ok=True)
            write_atomically(self.parts / "begin.json", json.dumps(metadata, sort_keys=True))
        elif begun != json.loads(json.dumps(metadata)):
            raise LabelError(_difference(self.path, begun, metadata))

    def _begun(self):
        if self.path.exists():
            metadata = read_labels(self.path).metadata
            return {key: value for key, value in metadata.items() if key != "failed"}
        try:
            return json.loads((self.parts / "begin.json").read_text())
        except FileNotFoundError:
            return None

    def done(self):
        """Numbers of the frames that are labelled or have failed."""
        if self.path.exists():
            labelled = read_labels(self.path)
            return set(range(labelled.metadata["n_frames"]))
        return {int(p.stem) for suffix in ("npz", "json") for p in self.parts.glob(f"[0-9]*.{suffix}")}

    def add(self, number, atoms, energy, forces, stress):
        """Keep the label of frame `number`: energy eV, forces (n_atoms, 3) eV/Å, stress (3, 3) eV/Å^3 or nan.

        Raises LabelError if it is not finite (a stress may be nan throughout) or has the wrong shape.
        """
        _check_label(len(atoms), energy, forces, stress)
        arrays = {
            "atomic_numbers": atoms.numbers.astype(np.int16),
            "positions": atoms.positions,
            "cell": atoms.cell.array,
            "pbc": atoms.pbc,
            "energy": np.float64(energy),
            "forces": np.asarray(forces, np.float64),
            "stress": np.asarray(stress, np.float64),
            "info": np.array(json.dumps(_plain(atoms.info), sort_keys=True)),
        }
        with replacing(self.parts / f"{number:07d}.npz") as part, open(part, "wb") as file:
            np.savez(file, **arrays)

    def fail(self, number, reason):
        """Record that frame `number` could not be labelled, and why."""
        write_atomically(self.parts / f"{number:07d}.json", json.dumps({"reason": reason}))

    def finish(self):
        """Join all parts into the HDF5 file and remove them; the file's hash."""
        if not self.path.exists():
            metadata = json.loads((self.parts / "begin.json").read_text())
            failures = sorted(self.parts.glob("[0-9]*.json"))
            metadata["failed"] = {str(int(p.stem)): json.loads(p.read_text())["reason"] for p in failures}
            frames = [_read_part(p) for p in sorted(self.parts.glob("[0-9]*.npz"))]
            if not frames:
                reason = next(iter(metadata["failed"].values()), "nothing")
                raise LabelError(f"not one frame could be labelled; the first said: {reason}")
            _write_file(self.path, frames, metadata)
        shutil.rmtree(self.parts, ignore_errors=True)
        return read_labels(self.path).hash


def read_labels(path):
    """The LabelledSet in `path`; LabelError if it is missing, damaged, not one of ours or holds NaN."""
    path = Path(path)
    if not path.is_file():
        raise LabelError(_why_missing(path))
    try:
        with h5py.File(path, "r") as file:
            arrays, metadata, stored_hash = _read_file(path, file)
    except (OSError, KeyError, RuntimeError) as error:
        raise LabelError(f"{path} is damaged or not a label file: {error}") from error
    if _content_hash(arrays, metadata) != stored_hash:
        raise LabelError(f"{path} is damaged: its contents do not match the hash stored with them")
    return _labelled_set(path, arrays, metadata, stored_hash)


def join_labels(sets):
    """One LabelledSet out of several by the same teacher; LabelError if the teachers differ."""
    first = sets[0]
    if len(sets) == 1:
        return first
    for other in sets[1:]:
        if other.metadata["teacher"] != first.metadata["teacher"]:
            raise LabelError(f"labels differ in {_difference_of_teachers(first.metadata, other.metadata)}")
    hashes = [s.hash for s in sets]
    return LabelledSet(
        [a for s in sets for a in s.structures],
        np.concatenate([s.energies for s in sets]),
        [f for s in sets for f in s.forces],
        np.concatenate([s.stresses for s in sets]),
        {
            "teacher": first.metadata["teacher"],
            "joined": hashes,
            "n_frames": sum(map(len, sets)),
            "failed": {},
        },
        hashlib.sha256("".join(hashes).encode()).hexdigest(),
    )


def frames_hash(frames):
    """sha256 of what is to be labelled: species, positions, cells and pbc of all frames, in order."""
    digest = hashlib.sha256()
    for atoms in frames:
        for array in (atoms.numbers.astype("<i8"), atoms.positions, atoms.cell.array, atoms.pbc):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _check_label(n_atoms, energy, forces, stress):
    if np.shape(forces) != (n_atoms, 3):
        raise LabelError(f"forces have shape {np.shape(forces)}, not {(n_atoms, 3)}")
    if np.shape(energy) != ():
        raise LabelError(f"the energy has shape {np.shape(energy)}, not ()")
    if np.shape(stress) != (3, 3):
        raise LabelError(f"the stress has shape {np.shape(stress)}, not (3, 3)")
    if not (np.isfinite(energy) and np.isfinite(forces).all()):
        raise LabelError("the teacher's energy or forces are not finite")
    if not (np.isfinite(stress).all() or np.isnan(stress).all()):
        raise LabelError("the teacher's stress is not finite")


def _plain(info):
    """What of an info dict fits into JSON."""
    kept = {}
    for key, value in info.items():
        value = value.item() if isinstance(value, np.generic) else value
        value = value.tolist() if isinstance(value, np.ndarray) else value
        if isinstance(value, (str, int, float, bool, list)):
            kept[str(key)] = value
    return kept


def _read_part(path):
    try:
        with np.load(path, allow_pickle=False) as part:
            arrays = {key: part[key] for key in part}
            return {**arrays, "frame_idx": int(path.stem), "info": str(arrays["info"])}
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise LabelError(f"{path} is damaged ({error}): delete it and label again") from error


def _write_file(path, frames, metadata):
    arrays = {
        "frame_idx": np.array([f["frame_idx"] for f in frames], np.int64),
        "n_atoms": np.array([len(f["atomic_numbers"]) for f in frames], np.int64),
        **{key: np.stack([f[key] for f in frames]) for key in FRAME_FIELDS[2:]},
        **{key: np.concatenate([f[key] for f in frames]) for key in ATOM_FIELDS},
        "info": np.array([f["info"] for f in frames], dtype=object),
    }
    with replacing(path) as part, h5py.File(part, "w") as file:
        file.attrs["format"], file.attrs["format_number"] = FORMAT, FORMAT_NUMBER
        file.attrs["metadata"] = json.dumps(metadata, sort_keys=True)
        file.attrs["hash"] = _content_hash(arrays, metadata)
        for key, array in arrays.items():
            kind = h5py.string_dtype() if key == "info" else None
            file.create_dataset(key, data=array, dtype=kind, track_times=False)


def _read_file(path, file):
    if file.attrs.get("format") != FORMAT:
        raise LabelError(f"{path} is an HDF5 file, but not a label file of mlffd")
    number = int(file.attrs["format_number"])
    if number > FORMAT_NUMBER:
        raise LabelError(f"{path} has label format {number}, newer than {FORMAT_NUMBER}: update mlffd")
    arrays = {key: file[key][:] for key in (*FRAME_FIELDS, *ATOM_FIELDS)}
    arrays["info"] = file["info"].asstr()[:]
    return arrays, json.loads(file.attrs["metadata"]), file.attrs["hash"]


def _content_hash(arrays, metadata):
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for key in (*FRAME_FIELDS, *ATOM_FIELDS):
        digest.update(key.encode() + str(arrays[key].shape).encode())
        digest.update(np.ascontiguousarray(arrays[key]).tobytes())
    for text in arrays["info"]:
        digest.update(text.encode() + b"\n")
    return digest.hexdigest()


def _labelled_set(path, arrays, metadata, stored_hash):
    if not (np.isfinite(arrays["energy"]).all() and np.isfinite(arrays["forces"]).all()):
        raise LabelError(f"{path} holds labels that are not finite: label those frames again")
    ends = np.cumsum(arrays["n_atoms"])[:-1]
    numbers, positions, forces = (np.split(arrays[key], ends) for key in ATOM_FIELDS)
    structures = [
        Atoms(z, positions=x, cell=cell, pbc=pbc, info=json.loads(info))
        for z, x, cell, pbc, info in zip(numbers, positions, arrays["cell"], arrays["pbc"], arrays["info"])
    ]
    return LabelledSet(structures, arrays["energy"], forces, arrays["stress"], metadata, stored_hash)


def _why_missing(path):
    if path.is_dir():
        return f"{path} is a folder, not a label file"
    if path.with_name(path.name + ".parts").exists():
        return f"labelling into {path} is not finished: run the same mlffd label again to go on with it"
    return f"no label file {path}"


def _difference(path, begun, metadata):
    if begun.get("frames") != metadata.get("frames"):
        what = f"other frames ({begun.get('n_frames')} of them, now {metadata.get('n_frames')})"
    else:
        what = _difference_of_teachers(begun, metadata)
    return f"{path} was begun with {what}: choose another output or delete it and {path.name}.parts"


def _difference_of_teachers(begun, now):
    first, second = begun.get("teacher", {}), now.get("teacher", {})
    differing = [k for k in sorted({*first, *second}) if first.get(k) != second.get(k)]
    return "another teacher: " + ", ".join(f"{k} {first.get(k)!r}, now {second.get(k)!r}" for k in differing)
