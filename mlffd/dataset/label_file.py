# SPDX-License-Identifier: MIT
"""The label file: structures with a teacher's energies, forces and stresses, in one HDF5 file.

Its bytes follow from its contents alone. The hash is one of structures, labels and teacher; the version of
mlffd that wrote the file stands beside it, outside the hash: the same labels are the same labels.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from ase import Atoms

from mlffd.environment import installed_version
from mlffd.errors import LabelError
from mlffd.files import write_atomically

FORMAT = "mlffd labels"
PLAIN, WITH_HESSIAN = 1, 2  # format numbers; a file without Hessian rows is what it always was
# per-frame arrays, and arrays that run over the atoms of all frames
FRAME_FIELDS = ("frame_idx", "n_atoms", "cell", "pbc", "energy", "stress")
ATOM_FIELDS = ("atomic_numbers", "positions", "forces")
# rows of a frame, their components of all frames, and the rows of all frames, flat
HESSIAN_FIELDS = ("hessian_counts", "hessian_components", "hessian_rows")
VERSION_KEY = "mlffd_version"
# what HDF5 and NumPy raise for a file that is not what it should be
DAMAGES = (OSError, LookupError, RuntimeError, ValueError, TypeError, AttributeError, ArithmeticError)
DAMAGES += (MemoryError,)


@dataclass(frozen=True)
class LabelledSet:
    """Labelled structures, in frame order.

    structures: list of ase.Atoms without calculator, info as sampled; energies (n,) eV;
    forces: list of (n_atoms, 3) eV/Å; stresses (n, 3, 3) eV/Å^3 in ASE's sign, nan where the teacher
    gives none; metadata: `teacher` (name, version, licence, settings), `frames` (sha256 of what was to be
    labelled), `n_frames`, `failed` (frame number -> reason), `mlffd_version` that wrote the file;
    hash: sha256 of all of it but that version;
    hessian_rows: None, or for each frame None or a pair: components (k,), numbered 3 * atom + direction,
    and those rows (k, 3 n_atoms) of the Hessian d2E/dx2, eV/Å^2; frame_idx: number of each frame among
    those that were to be labelled, None if it is unknown.
    """

    structures: list
    energies: np.ndarray
    forces: list
    stresses: np.ndarray
    metadata: dict
    hash: str
    hessian_rows: list | None = None
    frame_idx: np.ndarray | None = None

    def __len__(self):
        return len(self.structures)

    @property
    def hashes(self):
        """That of all of it, and those of the files it was joined from."""
        return [self.hash, *self.metadata.get("joined", [])]


def frame_record(number, atoms, energy, forces, stress, hessian=None):
    """One labelled frame as the arrays that are stored of it; see LabelledSet for shapes and units.

    Raises LabelError if the label is not finite (a stress may be nan throughout) or has the wrong shape.
    """
    _check_label(len(atoms), energy, forces, stress, hessian)
    record = {
        "frame_idx": int(number),
        "atomic_numbers": atoms.numbers.astype(np.int16),
        "positions": atoms.positions,
        "cell": atoms.cell.array,
        "pbc": atoms.pbc,
        "energy": np.float64(energy),
        "forces": np.asarray(forces, np.float64),
        "stress": np.asarray(stress, np.float64),
        "info": json.dumps(plain_info(atoms.info), sort_keys=True),
    }
    if hessian is not None:
        record["hessian_components"] = np.asarray(hessian[0], np.int64)
        record["hessian_rows"] = np.asarray(hessian[1], np.float64)
    return record


def write_labels(path, records, metadata):
    """Write a label file of frame_record()s in frame order, whole or not at all; its hash.

    metadata: see LabelledSet; OSError if there is no room.
    """
    path, metadata = Path(path), {key: metadata[key] for key in metadata if key != VERSION_KEY}
    arrays = _joined(records)
    content_hash = _content_hash(arrays, metadata)
    # HDF5 writes into memory: a full disk is then an ordinary error, which leaves nothing half written
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        file.attrs["format"] = FORMAT
        file.attrs["format_number"] = WITH_HESSIAN if "hessian_rows" in arrays else PLAIN
        file.attrs["metadata"] = json.dumps(metadata, sort_keys=True)
        file.attrs["hash"] = content_hash
        file.attrs[VERSION_KEY] = installed_version("mlffd") or "unknown"
        for key, array in arrays.items():
            kind = h5py.string_dtype() if key == "info" else None
            file.create_dataset(key, data=array, dtype=kind, track_times=False)
        file.flush()
        image = file.id.get_file_image()
    write_atomically(path, image)
    return content_hash


def hash_of(records, metadata):
    """The hash that a file of these frame_record()s would have."""
    return _content_hash(_joined(records), metadata)


def read_labels(path):
    """The LabelledSet in `path`; LabelError if it is missing, damaged, not one of ours or holds NaN."""
    path = Path(path)
    arrays, metadata, content_hash = _read_checked(path)
    if not (np.isfinite(arrays["energy"]).all() and np.isfinite(arrays["forces"]).all()):
        raise LabelError(f"{path} holds labels that are not finite: label those frames again")
    ends = np.cumsum(arrays["n_atoms"])[:-1]
    numbers, positions, forces = (np.split(arrays[key], ends) for key in ATOM_FIELDS)
    structures = [
        Atoms(z, positions=x, cell=cell, pbc=pbc, info=json.loads(info))
        for z, x, cell, pbc, info in zip(numbers, positions, arrays["cell"], arrays["pbc"], arrays["info"])
    ]
    hessian = _split_hessian(arrays) if "hessian_rows" in arrays else None
    return LabelledSet(
        structures, arrays["energy"], forces, arrays["stress"], metadata, content_hash, hessian,
        arrays["frame_idx"],
    )  # fmt: skip


def read_records(path):
    """The frame_record()s of a label file, and its metadata; errors as read_labels."""
    labels = read_labels(path)
    hessian = labels.hessian_rows or [None] * len(labels)
    fields = (labels.frame_idx, labels.structures, labels.energies, labels.forces, labels.stresses, hessian)
    return [frame_record(*one) for one in zip(*fields)], labels.metadata


def join_labels(sets):
    """One LabelledSet out of several by the same teacher; LabelError if the teachers differ."""
    first = sets[0]
    if len(sets) == 1:
        return first
    for other in sets[1:]:
        if other.metadata["teacher"] != first.metadata["teacher"]:
            raise LabelError(f"labels differ in {difference_of_teachers(first.metadata, other.metadata)}")
    hashes = [s.hash for s in sets]
    metadata = {"teacher": first.metadata["teacher"], "joined": hashes}
    rows = [row for s in sets for row in s.hessian_rows or [None] * len(s)]
    return LabelledSet(
        [a for s in sets for a in s.structures],
        np.concatenate([s.energies for s in sets]),
        [f for s in sets for f in s.forces],
        np.concatenate([s.stresses for s in sets]),
        {**metadata, "n_frames": sum(map(len, sets)), "failed": {}},
        hashlib.sha256("".join(hashes).encode()).hexdigest(),
        rows if any(row is not None for row in rows) else None,
    )


def difference_of_teachers(begun, now):
    """What the teachers of two metadata differ in, as words."""
    first, second = begun.get("teacher", {}), now.get("teacher", {})
    differing = [k for k in sorted({*first, *second}) if first.get(k) != second.get(k)]
    return "another teacher: " + ", ".join(f"{k} {first.get(k)!r}, now {second.get(k)!r}" for k in differing)


def _check_label(n_atoms, energy, forces, stress, hessian):
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
    if hessian is not None:
        wanted = (len(hessian[0]), 3 * n_atoms)
        if np.shape(hessian[1]) != wanted:
            raise LabelError(f"the Hessian rows have shape {np.shape(hessian[1])}, not {wanted}")
        if not np.isfinite(hessian[1]).all():
            raise LabelError("the teacher's Hessian rows are not finite")


def plain_info(info):
    """What of an info dict fits into JSON."""
    kept = {}
    for key, value in info.items():
        value = value.item() if isinstance(value, np.generic) else value
        value = value.tolist() if isinstance(value, np.ndarray) else value
        if isinstance(value, (str, int, float, bool, list)):
            kept[str(key)] = value
    return kept


def _joined(records):
    arrays = {
        "frame_idx": np.array([r["frame_idx"] for r in records], np.int64),
        "n_atoms": np.array([len(r["atomic_numbers"]) for r in records], np.int64),
        **{key: np.stack([r[key] for r in records]) for key in FRAME_FIELDS[2:]},
        **{key: np.concatenate([r[key] for r in records]) for key in ATOM_FIELDS},
        "info": np.array([r["info"] for r in records], dtype=object),
    }
    if any("hessian_rows" in r for r in records):
        components = [r.get("hessian_components", np.zeros(0, np.int64)) for r in records]
        arrays["hessian_counts"] = np.array([len(c) for c in components], np.int64)
        arrays["hessian_components"] = np.concatenate(components)
        rows = [r["hessian_rows"].ravel() for r in records if "hessian_rows" in r]
        arrays["hessian_rows"] = np.concatenate(rows)
    return arrays


def _split_hessian(arrays):
    """For each frame None or (components (k,), rows (k, 3 n_atoms))."""
    counts, n_atoms = arrays["hessian_counts"], arrays["n_atoms"]
    components = np.split(arrays["hessian_components"], np.cumsum(counts)[:-1])
    rows = np.split(arrays["hessian_rows"], np.cumsum(counts * 3 * n_atoms)[:-1])
    return [(c, r.reshape(len(c), -1)) if len(c) else None for c, r in zip(components, rows)]


def _read_checked(path):
    """Arrays, metadata and hash of a file that is what its hash says."""
    if not path.is_file():
        raise LabelError(_why_missing(path))
    try:
        with h5py.File(path, "r") as file:
            arrays, metadata, stored_hash = _read_file(path, file)
            content_hash = _content_hash(arrays, metadata)
            version = file.attrs.get(VERSION_KEY)
    except DAMAGES as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise LabelError(f"{path} is damaged or not a label file: {reason}") from error
    if content_hash != stored_hash:
        raise LabelError(f"{path} is damaged: its contents do not match the hash stored with them")
    return arrays, {**metadata, VERSION_KEY: version} if version else metadata, content_hash


def _read_file(path, file):
    if file.attrs.get("format") != FORMAT:
        raise LabelError(f"{path} is an HDF5 file, but not a label file of mlffd")
    number = int(file.attrs["format_number"])
    if number > WITH_HESSIAN:
        raise LabelError(f"{path} has label format {number}, newer than {WITH_HESSIAN}: update mlffd")
    keys = (*FRAME_FIELDS, *ATOM_FIELDS, *(HESSIAN_FIELDS if number == WITH_HESSIAN else ()))
    arrays = {key: file[key][:] for key in keys}
    arrays["info"] = file["info"].asstr()[:]
    return arrays, json.loads(file.attrs["metadata"]), file.attrs["hash"]


def _content_hash(arrays, metadata):
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for key in (*FRAME_FIELDS, *ATOM_FIELDS, *(key for key in HESSIAN_FIELDS if key in arrays)):
        digest.update(key.encode() + str(arrays[key].shape).encode())
        digest.update(np.ascontiguousarray(arrays[key]).tobytes())
    for text in arrays["info"]:
        digest.update(text.encode() + b"\n")
    return digest.hexdigest()


def _why_missing(path):
    if path.is_dir():
        return f"{path} is a folder, not a label file"
    if path.exists():
        return f"{path} is not a file"
    if path.with_name(path.name + ".parts").exists():
        return f"labelling into {path} is not finished: run the same mlffd label again to go on with it"
    return f"no label file {path}"
