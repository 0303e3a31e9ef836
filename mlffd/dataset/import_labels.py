# SPDX-License-Identifier: MIT
"""Labels of others: structures with energies and forces in any file that ASE reads become a label file."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mlffd.dataset import stress_check
from mlffd.dataset.extxyz import KEY, exported_record, full_stress, is_exported
from mlffd.dataset.frames import read_frames
from mlffd.dataset.label_file import frame_record, hash_of, write_labels
from mlffd.dataset.store import frames_hash
from mlffd.environment import sha256_of
from mlffd.errors import ConfigError, LabelError


@dataclass(frozen=True)
class Origin:
    """Who made labels, and under which names and in which units they stand in the file.

    `energy` eV, `forces` eV/Å and `virial` eV are names in the file; where ASE knows a name it need not be
    given. `stress_unit` and `stress_sign` (see stress_check) are found wrong or taken as usual if None.
    """

    name: str | None = None
    version: str = "not stated"
    licence: str | None = None
    settings: dict = field(default_factory=dict)
    energy: str | None = None
    forces: str | None = None
    stress: str | None = None
    virial: str | None = None
    stress_unit: str | None = None
    stress_sign: str | None = None
    no_stress: bool = False
    skip_bad: bool = False  # record frames without a sound label as failed instead of refusing all


def import_labels(frames_path, output, origin):
    """Write the label file `output` from structures with labels in `frames_path`; its hash.

    A file that `mlffd labels export` wrote needs no `origin` and becomes the file it was, hash and all.
    Raises LabelError naming the first frame whose label is missing or not finite, or whose stress has
    another sign or unit than said; ConfigError if it is not said who made the labels.
    """
    frames_path, output = Path(frames_path), Path(output)
    if output.exists() or output.with_name(output.name + ".parts").exists():
        raise LabelError(f"{output} is there already: choose another output or delete it")
    frames = read_frames(frames_path)
    if is_exported(frames):
        return _restore(frames, frames_path, output, origin)
    if KEY in frames[0].info:
        raise LabelError(f"{frames_path}: some frames were exported by mlffd, others were not")
    if origin.name is None or origin.licence is None:
        raise ConfigError("say who made these labels: --teacher-name and --licence")
    return _adopt(frames, frames_path, output, origin)


def _restore(frames, path, output, origin):
    """From an exported file: the same labels, or those of its frames that are left."""
    if origin.name is not None:
        raise ConfigError(f"{path} says itself who made its labels: leave out --teacher-name")
    records = [_named(exported_record, atoms, k, path) for k, atoms in enumerate(frames)]
    whole = frames[0].info[KEY].get("labels")
    if whole is not None and hash_of(records, whole["metadata"]) == whole["hash"]:
        return write_labels(output, records, whole["metadata"])
    teachers = [atoms.info[KEY]["teacher"] for atoms in frames]
    if any(teacher != teachers[0] for teacher in teachers):
        raise LabelError(f"{path} holds labels of several teachers: import them one by one")
    print(f"{path} is not all as it was exported: its frames become labels of their own", file=sys.stderr)
    records = [{**record, "frame_idx": k} for k, record in enumerate(records)]
    return write_labels(output, records, _metadata(frames, path, teachers[0], {}))


def _named(make, atoms, k, path):
    try:
        return make(atoms)
    except LabelError as error:
        raise LabelError(f"{path}: frame {k}: {error}") from error


def _adopt(frames, path, output, origin):
    """From a stranger's file."""
    failed = {}
    given, virials = _tensors(frames, origin, failed)
    try:
        stresses = _checked_stresses(given, virials, frames, origin)
    except LabelError as error:
        raise LabelError(f"{path}: {error}") from error
    records = []
    for k, atoms in enumerate(frames):
        try:
            records.append(_record(k, atoms, stresses[k], origin))
        except LabelError as error:
            failed[k] = str(error)
    records = [record for record in records if record["frame_idx"] not in failed]
    _accept(failed, len(records), path, origin)
    teacher = {"name": origin.name, "version": origin.version, "licence": origin.licence}
    metadata = _metadata(frames, path, {**teacher, "settings": origin.settings}, failed)
    return write_labels(output, records, metadata)


def _accept(failed, n_sound, path, origin):
    """Raise LabelError if there are failed frames and that was not foreseen, or nothing else."""
    if not failed:
        return
    number = min(failed)
    others = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    line = f"{path}: frame {number}{others}: {failed[number]}"
    if n_sound == 0:
        raise LabelError(f"{line}; no frame has a sound label")
    if not origin.skip_bad:
        raise LabelError(f"{line}; mend it, or --skip-bad records such frames as failed")


def _metadata(frames, path, teacher, failed):
    return {
        "teacher": teacher,
        "frames": frames_hash(frames),
        "n_frames": len(frames),
        "failed": {str(number): failed[number] for number in sorted(failed)},
        "imported": {"sha256": sha256_of(path)},
    }


def _record(number, atoms, stress, origin):
    # where energy and free energy differ, it is the latter whose gradient the forces are
    energy = _found(atoms, origin.energy, ("free_energy", "energy"), "energy")
    forces = _found(atoms, origin.forces, ("forces",), "forces")
    if np.size(energy) != 1:
        raise LabelError(f"its energy is {energy!r}")
    bare = atoms.copy()
    used = {origin.energy, origin.stress, origin.virial, "virial"}
    bare.info = {key: value for key, value in atoms.info.items() if key not in used}
    return frame_record(number, bare, np.float64(energy), np.asarray(forces, np.float64), stress)


def _found(atoms, key, usual, what):
    """The value under `key`, or under the first of the `usual` names; LabelError naming what there is."""
    given = {**atoms.info, **atoms.arrays, **(atoms.calc.results if atoms.calc else {})}
    for name in (key,) if key else usual:
        if given.get(name) is not None:
            return given[name]
    names = sorted(set(given) - {"numbers", "positions"})
    raise LabelError(f"it has no {key or what}; it has {', '.join(names) or 'none at all'} (--{what}-key)")


def _tensors(frames, origin, failed):
    """Stresses and virials (n, 3, 3) as given, nan where there is none; why one is bad goes to `failed`."""
    given, virials = np.full((2, len(frames), 3, 3), np.nan)
    for k, atoms in enumerate(frames if not origin.no_stress else ()):
        try:
            given[k] = _tensor(atoms, origin.stress or "stress")
            virials[k] = _tensor(atoms, origin.virial or "virial")
        except LabelError as error:
            failed[k] = str(error)
    return given, virials


def _tensor(atoms, key):
    """(3, 3), nan if there is none; 6 numbers are in ASE's Voigt order, which only its stresses have."""
    value = {**atoms.info, **(atoms.calc.results if atoms.calc else {})}.get(key)
    if value is None:
        return np.full((3, 3), np.nan)
    value = np.asarray(value)
    if value.dtype.kind not in "fi" or value.size not in ((6, 9) if key == "stress" else (9,)):
        raise LabelError(f"its {key} has {value.size} entries, not 9 numbers")
    if atoms.cell.rank < 3:
        raise LabelError(f"it has a {key}, but no cell")
    if not np.isfinite(value).all():
        raise LabelError(f"its {key} is not finite")
    return full_stress(value) if value.size == 6 else value.reshape(3, 3)


def _checked_stresses(given, virials, frames, origin):
    """Stresses (n, 3, 3) in eV/Å^3 and ASE's sign; LabelError if they contradict each other or all sense."""
    unit, sign = origin.stress_unit or "eV/A3", origin.stress_sign or "tension"
    volumes = np.array([atoms.get_volume() if atoms.cell.rank == 3 else np.nan for atoms in frames])
    stress_check.check_against_virials(given, virials, volumes, unit, sign)
    stresses = given * stress_check.UNITS[unit] * stress_check.SIGNS[sign]
    stresses = np.where(np.isnan(stresses), -virials / volumes[:, None, None], stresses)
    forces = [_sound_forces(atoms, origin) for atoms in frames]
    if origin.stress_unit is None:
        stress_check.check_unit(stresses, frames, forces)
    if origin.stress_sign is None:
        stress_check.check_sign(stresses, frames, forces)
    return stresses


def _sound_forces(atoms, origin):
    """(n_atoms, 3), or None where they are missing or not finite, which is told elsewhere."""
    try:
        forces = np.asarray(_found(atoms, origin.forces, ("forces",), "forces"), np.float64)
    except (LabelError, ValueError, TypeError):
        return None
    return forces if forces.shape == (len(atoms), 3) and np.isfinite(forces).all() else None
