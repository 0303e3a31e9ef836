# SPDX-License-Identifier: MIT
"""Label files as extended XYZ, for other programs: written without loss, and read back into the same file.

Energies, forces and stresses have the names, units and signs that ASE gives them. What extended XYZ has no
place for (teacher, hash, Hessian components) stands as JSON under one key, `mlffd`, of every frame.
"""

import json
import re
from pathlib import Path

import numpy as np
from ase.calculators.calculator import all_properties
from ase.io.extxyz import key_val_str_to_dict

from mlffd.dataset.label_file import VERSION_KEY, frame_record, plain_info, read_labels
from mlffd.errors import LabelError
from mlffd.files import write_atomically

KEY = "mlffd"
HESSIAN_COLUMNS = "hessian_rows"  # (n_atoms, 3 k): row after row, each as one vector an atom
# keys of a comment line that mean something else than what a frame tells about itself
RESERVED = {KEY, "Lattice", "Properties", "pbc", "virial", "virials", "uid", *all_properties}
FREE_KEY = re.compile(r"[A-Za-z_]\w*$")


def export_labels(labels_path, output):
    """Write a label file as extended XYZ, every number in full, whole or not at all; the LabelledSet.

    Raises LabelError if the label file cannot be read or `output` is there already.
    """
    output = Path(output)
    if output.exists():
        raise LabelError(f"{output} is there already: choose another output or delete it")
    labels = read_labels(labels_path)
    write_atomically(output, "".join(_frame(labels, k) for k in range(len(labels))))
    return labels


def _frame(labels, k):
    """Frame `k` of a LabelledSet as text."""
    atoms, hessian = labels.structures[k], labels.hessian_rows[k] if labels.hessian_rows else None
    columns = [atoms.positions, labels.forces[k]]
    properties = "species:S:1:pos:R:3:forces:R:3"
    if hessian is not None:
        columns.append(_as_columns(hessian[1]))
        properties += f":{HESSIAN_COLUMNS}:R:{columns[-1].shape[1]}"
    rows = zip(atoms.get_chemical_symbols(), np.hstack(columns).tolist())
    lines = [" ".join([symbol, *map(repr, numbers)]) for symbol, numbers in rows]
    return "\n".join([str(len(atoms)), _comment(labels, k, properties), *lines]) + "\n"


def _comment(labels, k, properties):
    """The second line of a frame."""
    atoms, stress = labels.structures[k], labels.stresses[k]
    free, awkward = _free_info(atoms.info)
    words = [f'Lattice="{_numbers(atoms.cell.array)}"'] if atoms.cell.array.any() else []
    words += [f"Properties={properties}", f"energy={float(labels.energies[k])!r}"]
    if np.isfinite(stress).all():
        words.append(f'stress="{_numbers(stress.T)}"')
    words.append('pbc="{} {} {}"'.format(*("T" if periodic else "F" for periodic in atoms.pbc)))
    ours = {"frame": int(labels.frame_idx[k]), "teacher": labels.metadata["teacher"], "info": awkward}
    if (stress != stress.T).any() and np.isfinite(stress).all():
        ours["stress"] = stress.tolist()  # ASE keeps one triangle only
    if labels.hessian_rows and labels.hessian_rows[k] is not None:
        ours["hessian_components"] = labels.hessian_rows[k][0].tolist()
    if k == 0:
        metadata = {key: value for key, value in labels.metadata.items() if key != VERSION_KEY}
        ours["labels"] = {"hash": labels.hash, "metadata": metadata}
    return " ".join([*words, *free, f"{KEY}={_quoted('_JSON ' + json.dumps(ours, sort_keys=True))}"])


def _free_info(info):
    """What of an info dict reads back as it is, as `key=value` texts, and the rest as a dict."""
    free, awkward = [], {}
    for key, value in info.items():
        text = f"{key}={_text(value)}"
        if FREE_KEY.match(key) and key not in RESERVED and _reads_back(key, value, text):
            free.append(text)
        else:
            awkward[key] = value
    return free, awkward


def _text(value):
    if isinstance(value, bool):
        return "T" if value else "F"
    return _quoted(value) if isinstance(value, str) else repr(value)


def _reads_back(key, value, text):
    if isinstance(value, str) and ("\n" in value or "\r" in value):
        return False
    try:
        found = plain_info(key_val_str_to_dict(text)).get(key)
    except ValueError:  # it looks like JSON and is none
        return False
    return type(found) is type(value) and found == value


def _quoted(text):
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _numbers(array):
    return " ".join(map(repr, np.ravel(array).tolist()))


def _as_columns(rows):
    """(k, 3 n_atoms) -> (n_atoms, 3 k)."""
    return rows.reshape(len(rows), -1, 3).transpose(1, 0, 2).reshape(-1, 3 * len(rows))


def _as_rows(columns):
    """(n_atoms, 3 k) -> (k, 3 n_atoms)."""
    n_atoms = len(columns)
    return columns.reshape(n_atoms, -1, 3).transpose(1, 0, 2).reshape(-1, 3 * n_atoms)


def is_exported(frames):
    """Whether all these structures (ase.Atoms with what ASE read beside them) were exported by mlffd."""
    return all(isinstance(atoms.info.get(KEY), dict) and "teacher" in atoms.info[KEY] for atoms in frames)


def exported_record(atoms):
    """The frame_record() of a frame that was exported; LabelError if it has lost its label."""
    ours = atoms.info[KEY]
    found = atoms.calc.results if atoms.calc else {}
    if "energy" not in found or "forces" not in found:
        raise LabelError("it has lost its energy or forces")
    hessian = None
    if "hessian_components" in ours:
        if HESSIAN_COLUMNS not in atoms.arrays:
            raise LabelError("it has lost its Hessian rows")
        hessian = np.array(ours["hessian_components"]), _as_rows(atoms.arrays[HESSIAN_COLUMNS])
    stress = np.array(ours.get("stress", full_stress(found.get("stress"))))
    bare = atoms.copy()
    bare.info = {**{key: value for key, value in atoms.info.items() if key != KEY}, **ours.get("info", {})}
    return frame_record(ours["frame"], bare, float(found["energy"]), found["forces"], stress, hessian)


def full_stress(voigt):
    """(3, 3) of a stress in ASE's Voigt order; nan for None."""
    if voigt is None:
        return np.full((3, 3), np.nan)
    xx, yy, zz, yz, xz, xy = np.ravel(voigt)
    return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
