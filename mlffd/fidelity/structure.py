# SPDX-License-Identifier: MIT
"""Structure beside each other: radial distribution functions, bond lengths, angles."""

from collections.abc import Callable, Sequence

import numpy as np

from mlffd.fidelity.beside import Findings, Pair, notes, thinned
from mlffd.fidelity.lines import curve, line, table
from mlffd.fidelity.observables import (
    bin_centers,
    bond_angles,
    bond_lengths,
    bonds_of,
    first_peak,
    pair_counts,
)
from mlffd.fidelity.statistics import block_means, combined, mean_with_error, replica_jackknife
from mlffd.fidelity.stretch import compare_stretches
from mlffd.fidelity.trajectories import Recording

RDF_FRAMES, BOND_FRAMES = 1000, 400  # of all replicas together, at most
BROKEN = 1.5  # times the mean length of its kind, at which a bond counts as broken
SURE_POSITION, SURE_HEIGHT = 0.01, 0.05  # Å and relative, to which a teacher's peak should be known
MOST_BONDS = 4  # an atom; where there are more, as in metals, angles say little and are many


def compare_rdfs(pair: Pair, rdf_range: float) -> Findings:
    """Radial distribution functions of all pairs of elements up to ``rdf_range`` (Å), and first peaks."""
    sides = [rdf_blocks(replicas, rdf_range, pair.n_blocks) for replicas in pair.both]
    title, unit = ("rdf", "g(r)") if pair.periodic else ("distances", "probability, 1/Å")
    remark = "" if pair.periodic else "distances, not normalised by volume: not periodic in three directions"
    r, found = bin_centers(rdf_range), Findings()
    stretches, doubts = compare_stretches(pair)
    positions, heights, rows = [], [], []
    for name in sides[0]:
        blocks = [side[name] for side in sides]
        if not any(part[:, 0].any() for parts in blocks for part in parts):
            continue  # so far apart, or one atom alone
        curves = [replica_jackknife(parts, quotient) for parts in blocks]
        found.curves.append(curve(f"{title} {name}", r, ("r, Å", unit), *curves))
        peaks = [replica_jackknife(parts, lambda b: first_peak(r, quotient(b))) for parts in blocks]
        rows.append([name, *(part[k] for k in (0, 1) for peak in peaks for part in peak)])
        sure = all(np.isfinite(errors).all() for _, errors in peaks)
        doubt = notes("" if sure else "too short to judge: no error", doubts.get(name, ""))
        note = notes(remark, vague(*peaks[0]))
        positions.append(line(f"rdf_peak_position_{name}", *shift(peaks), note, doubt))
        heights.append(line(f"rdf_peak_height_{name}", *growth(peaks), note, doubt))
    found.lines = [*with_worst("rdf_peak_position", positions), *with_worst("rdf_peak_height", heights)]
    columns = ["pair", "teacher, Å", "±", "student, Å", "±"]
    columns += ["teacher, height", "±", "student, height", "±"]
    found.tables = [table("First peaks of the radial distribution functions", columns, rows)]
    found.add(stretches)
    return found


def rdf_blocks(replicas: Sequence[Recording], rdf_range: float, n_blocks: int) -> dict[str, list]:
    """By pair of elements and replica (n_blocks, 2, n_bins): counts, and what they are to be divided by;
    replicas may differ in composition and size."""
    blocks = {}
    for replica in thinned(replicas, RDF_FRAMES):
        for name, pairs in pair_counts(replica.start, replica.positions, rdf_range).items():
            means = block_means(pairs.counts, n_blocks)
            both = np.stack([means, np.broadcast_to(pairs.ideal, means.shape)], axis=1)
            blocks.setdefault(name, []).append(both)
    return blocks


def quotient(block: np.ndarray) -> np.ndarray:
    """(n_bins,) from the mean (2, n_bins) of blocks."""
    return block[0] / block[1]


def vague(peak: np.ndarray, error: np.ndarray) -> str:
    """A remark on a first peak of the teacher that is not known well: position and height. Whether it is well
    enough for a bar, the verdict tells from the line's error."""
    if error[0] < SURE_POSITION and error[1] < SURE_HEIGHT * peak[1]:
        return ""
    place = f"{peak[0]:.3f} ± {error[0]:.2g} Å"
    return f"a short run: the teacher's peak is at {place}, {peak[1]:.3g} ± {error[1]:.2g} high"


def shift(peaks: list) -> tuple[float, float]:
    """Student's position less the teacher's, and its error; ``peaks`` are ([position, height], errors)."""
    (teacher, error), (student, error_2) = ((values[0], errors[0]) for values, errors in peaks)
    return student - teacher, combined(error, error_2)


def growth(peaks: list) -> tuple[float, float]:
    """Student's height over the teacher's less 1, and its error."""
    (teacher, error), (student, error_2) = ((values[1], errors[1]) for values, errors in peaks)
    return student / teacher - 1.0, combined(error_2 / teacher, error * student / teacher**2)


def with_worst(name: str, lines: list[dict]) -> list[dict]:
    """The line that is farthest from zero once more under the common name, and all of them; in doubt if one
    of them is."""
    if not lines:
        return [line(name, None, None, "no pair of atoms is within the range of the RDFs")]
    if any(one["value"] is None for one in lines):
        return [line(name, None, None, "a pair of elements has no peak on one side"), *lines]
    worst = max(lines, key=lambda one: abs(one["value"]))
    note = notes(f"worst pair: {pair_of(worst)}", worst["note"])
    doubt = next((f"{pair_of(one)}: {one['doubt']}" for one in [worst, *lines] if one["doubt"]), "")
    return [{**line(name, worst["value"], worst["error"], note), "doubt": doubt}, *lines]


def pair_of(pair_line: dict) -> str:
    """``H-O``."""
    return pair_line["name"].rpartition("_")[2]


def compare_bonds(pair: Pair) -> Findings:
    """Distributions of bond lengths and angles, of atoms that are bonded at the start."""
    found, rows = Findings(), []
    for title, function, label, unit, width in (
        ("bonds", bond_lengths, "length, Å", "1/Å", 0.01),
        ("angles", bond_angles, "angle, degrees", "1/degree", 2.0),
    ):
        teacher, student = (samples_of(replicas, function) for replicas in pair.both)
        for name, both in ((name, (teacher[name], student[name])) for name in teacher):
            edges = histogram_edges(both, width)
            densities = [density_with_error(samples, edges, pair.n_blocks) for samples in both]
            x = 0.5 * (edges[1:] + edges[:-1])
            found.curves.append(curve(f"{title} {name}", x, (label, unit), *densities))
            gone = broken(both[1]) if title == "bonds" else ""
            rows.append([f"{title} {name}", *moments(both[0]), *moments(both[1]), gone])
    if rows:
        columns = ["", "teacher, mean", "±", "spread", "student, mean", "±", "spread", "student, broken"]
        found.tables = [table("Bond lengths (Å) and angles (degrees)", columns, rows)]
    return found


def samples_of(replicas: Sequence[Recording], function: Callable) -> dict[str, list[np.ndarray]]:
    """(n_frames, n_items) of each replica that has such items, by their name."""
    found = {}
    for replica in thinned(replicas, BOND_FRAMES):
        bonds = bonds_of(replica.start)
        if function is bond_angles and len(bonds.i) > MOST_BONDS * len(replica.start):
            continue
        for name, samples in function(replica.start, replica.positions, bonds).items():
            found.setdefault(name, []).append(samples)
    return found


def histogram_edges(both: tuple, width: float) -> np.ndarray:
    """Common bins for all samples but the farthest thousandth."""
    joined = np.concatenate([one.ravel() for samples in both for one in samples])
    low, high = np.quantile(joined, [0.0005, 0.9995])
    return np.arange(np.floor(low / width), np.ceil(high / width) + 2) * width


def density_with_error(
    samples: list[np.ndarray], edges: np.ndarray, n_blocks: int
) -> tuple[np.ndarray, np.ndarray]:
    """Probability density in each bin, with the error from blocks of all replicas."""
    widths, parts = np.diff(edges), []
    for one in samples:
        blocks = np.array_split(one, min(n_blocks, len(one)))
        parts.append(np.array([np.histogram(block, edges)[0] / (block.size * widths) for block in blocks]))
    return replica_jackknife(parts, np.copy)


def moments(samples: list[np.ndarray]) -> tuple[float, float, float]:
    """Mean, its error, and the spread of single values."""
    mean, error = mean_with_error([one.mean(axis=1) for one in samples])
    return mean, error, float(np.concatenate([one.ravel() for one in samples]).std())


def broken(samples: list[np.ndarray]) -> int:
    """Bonds that at some time were much longer than on the average."""
    usual = np.median(np.concatenate([one.ravel() for one in samples]))
    return int(sum((one > BROKEN * usual).any(axis=0).sum() for one in samples))
