# SPDX-License-Identifier: MIT
"""What a label file holds, in words."""

from collections import Counter
from pathlib import Path

import numpy as np

from mlffd.dataset.label_file import VERSION_KEY, read_labels
from mlffd.dataset.store import LabelStore
from mlffd.units import GPA

FAILURES_SHOWN = 10


def describe(path):
    """Lines about the label file `path`, or about one in the making; LabelError if there is neither."""
    store = LabelStore(path)
    if not Path(path).exists() and store.parts.is_dir():
        labelled, failed = store.counts()
        return [f"{path}: not finished; {labelled} frames labelled, {failed} failed so far"]
    labels = read_labels(path)
    return [
        f"{path}: {len(labels)} labelled frames",
        *_origin(labels),
        *_contents(labels),
        *_failures(labels),
    ]


def _origin(labels):
    teacher, metadata = labels.metadata["teacher"], labels.metadata
    settings = ", ".join(f"{key} = {value}" for key, value in teacher["settings"].items())
    yield f"teacher: {teacher['name']}, {teacher['version']}, licence: {teacher['licence']}"
    if settings:
        yield f"settings: {settings}"
    if "imported" in metadata:
        yield f"imported from a file with sha256 {metadata['imported']['sha256']}"
    yield f"written by mlffd {metadata.get(VERSION_KEY, '(a version that did not say)')}"
    yield f"hash: {labels.hash}"


def _contents(labels):
    sizes = np.array([len(atoms) for atoms in labels.structures])
    elements = Counter(symbol for atoms in labels.structures for symbol in atoms.symbols)
    yield "elements: " + ", ".join(f"{symbol} ({elements[symbol]} atoms)" for symbol in sorted(elements))
    energies = _range(labels.energies / sizes, "{:.4f}")
    yield f"atoms a frame: {_range(sizes, '{:d}')}; energy: {energies} eV/atom"
    forces = np.concatenate(labels.forces)
    largest = np.linalg.norm(forces, axis=1).max()
    yield f"forces: {np.sqrt((forces**2).mean()):.3f} eV/Å RMS a component, largest {largest:.3f} eV/Å"
    stressed = np.isfinite(labels.stresses).all((1, 2))
    if stressed.any():
        pressures = -np.trace(labels.stresses[stressed], axis1=1, axis2=2) / 3 / GPA
        yield f"stress: {stressed.sum()} frames, pressure {_range(pressures, '{:.3g}')} GPa"
    else:
        yield "stress: none"
    if labels.hessian_rows is not None:
        yield f"Hessian rows: {sum(len(row[0]) for row in labels.hessian_rows if row is not None)}"


def _range(values, form):
    least, most = form.format(values.min()), form.format(values.max())
    return least if least == most else f"{least} to {most}"


def _failures(labels):
    failed = labels.metadata["failed"]
    if failed:
        yield f"failed: {len(failed)} of {labels.metadata['n_frames']} frames"
    for number in sorted(failed, key=int)[:FAILURES_SHOWN]:
        yield f"  frame {number}: {failed[number]}"
    if len(failed) > FAILURES_SHOWN:
        yield f"  and {len(failed) - FAILURES_SHOWN} more"
