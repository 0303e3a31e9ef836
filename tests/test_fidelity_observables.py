# SPDX-License-Identifier: MIT
"""Observables and their errors against what is known analytically."""

from dataclasses import replace

import ase.build
import numpy as np
import pytest
from ase import Atoms

from mlffd.fidelity.beside import Pair
from mlffd.fidelity.compare import compare
from mlffd.fidelity.diffusion import compare_diffusion
from mlffd.fidelity.motion import drift_line
from mlffd.fidelity.observables import (
    bin_centers,
    bond_angles,
    bond_lengths,
    bonds_of,
    diffusion_coefficient,
    first_peak,
    pair_counts,
    pressure,
    squared_displacements,
)
from mlffd.fidelity.statistics import (
    block_means,
    difference_with_error,
    grouped_error,
    jackknife,
    mean_with_error,
    slope_with_error,
    statistical_inefficiency,
)
from mlffd.fidelity.trajectories import Recording
from mlffd.units import BOLTZMANN, GPA

SKEWED = [[9.0, 0.0, 0.0], [2.0, 8.0, 0.0], [-1.0, 1.5, 10.0]]


def test_ideal_gas_is_uncorrelated():
    """g is 1 for every pair of elements, beyond half the cell too; seen to catch n^2 pairs in place of
    n (n - 1) / 2, and a cell whose images are left out."""
    random = np.random.default_rng(0)
    atoms = Atoms("H8O12", cell=SKEWED, pbc=True)
    positions = random.random((400, 20, 3)) @ np.array(SKEWED)
    found = pair_counts(atoms, positions, 5.0)
    assert set(found) == {"H-H", "H-O", "O-O"}
    for pairs in found.values():
        g = pairs.counts.sum(axis=0) / pairs.ideal / len(positions)
        for part in (slice(100, 200), slice(200, 249)):
            n = pairs.ideal[part].sum() * len(positions)
            mean = np.average(g[part], weights=pairs.ideal[part])
            assert mean == pytest.approx(1.0, abs=5.0 / np.sqrt(n))


def test_crystal_has_its_shells():
    """Coordination numbers of face-centered cubic: 12 at a / sqrt 2, 6 at a, of a cell with one atom too."""
    for atoms in (ase.build.bulk("Ar", cubic=True).repeat(2), ase.build.bulk("Ar")):
        a = 5.26
        (pairs,) = pair_counts(atoms, atoms.positions[None], 6.0).values()
        r = bin_centers(6.0)
        for distance, n in ((a / np.sqrt(2.0), 12), (a, 6)):
            near = np.abs(r - distance) < 0.02
            assert pairs.counts[0, near].sum() == n * len(atoms) / 2


def test_molecule_has_a_distance_distribution():
    """Normalised to all pairs, without a volume."""
    atoms = ase.build.molecule("CH4")
    found = pair_counts(atoms, atoms.positions[None], 4.0)
    for name, n_pairs in (("H-C", 4), ("H-H", 6)):
        density = found[name].counts[0] / found[name].ideal
        assert density.sum() * 0.02 == pytest.approx(1.0)
        assert found[name].counts.sum() == n_pairs
    assert found["C-C"].counts.sum() == 0


@pytest.mark.parametrize("position", [2.7601, 2.7667, 2.7731])
def test_peak_is_found_between_bins(position):
    """A Gaussian's top, to a hundredth of a bin; seen to catch the bin with the maximum taken instead."""
    r = bin_centers(6.0)
    g = 2.8 * np.exp(-0.5 * ((r - position) / 0.12) ** 2) + 1.0 / (1.0 + np.exp((4.5 - r) / 0.1))
    found = first_peak(r, g)
    assert found == pytest.approx([position, 2.8], abs=2e-4)


def test_peak_of_noisy_counts_and_none():
    random = np.random.default_rng(1)
    r = bin_centers(6.0)
    g = 2.5 * np.exp(-0.5 * ((r - 2.8) / 0.15) ** 2) + 1.0 / (1.0 + np.exp((4.0 - r) / 0.2))
    positions = [first_peak(r, random.poisson(200 * g) / 200)[0] for _ in range(50)]
    assert np.mean(positions) == pytest.approx(2.8, abs=0.01)
    assert np.std(positions) < 0.02
    assert np.isnan(first_peak(r, 0.0 * g)).all()
    spike = np.where(np.arange(len(r)) == 100, 7.0, 0.0)
    assert first_peak(r, spike) == pytest.approx([r[100], 7.0])


def test_bonds_and_angles_of_water_across_a_boundary():
    """Seen to catch bonds measured without the cell's offsets."""
    water = ase.build.molecule("H2O")
    length, angle = water.get_distance(0, 1), water.get_angle(1, 0, 2)
    water.set_cell([5.0, 5.0, 5.0])
    water.pbc = True
    water.positions += [0.0, 0.0, 5.0 - water.positions[0, 2] - 0.1]
    water.wrap()
    bonds = bonds_of(water)
    far = np.stack([water.positions, water.positions + 20.0])
    assert bond_lengths(water, far, bonds)["H-O"] == pytest.approx(np.full((2, 2), length))
    assert bond_angles(water, far, bonds)["H-O-H"] == pytest.approx(np.full((2, 1), angle))
    assert len(bonds.i) == 2


def test_pressure_of_an_ideal_gas_and_of_tension():
    """p = n k T / V without forces; a stress that is positive in ASE, a tension, makes it negative."""
    gas = pressure(np.zeros((1, 3, 3)), 100, 4000.0, 300.0)
    assert gas == pytest.approx(100 * BOLTZMANN * 300.0 / 4000.0 / GPA)
    assert gas[0] == pytest.approx(0.1035, rel=1e-3)  # GPa: 2.5 per nm^3 of kT = 4.14e-21 J
    pulled = pressure(np.diag([3.0, 0.0, 0.0])[None] * GPA, 100, 4000.0, 300.0)
    assert pulled == pytest.approx(gas - 1.0)


def walk(n_frames, n_atoms, step, seed=0):
    """A random walk with D = step^2 / 2 a frame."""
    return np.cumsum(np.random.default_rng(seed).normal(0.0, step, (n_frames, n_atoms, 3)), axis=0)


def test_random_walk_diffuses():
    """Einstein's coefficient, whatever the center of mass does; seen to catch one left in, and 2 for 6."""
    atoms = Atoms("Ar200")
    drift = np.linspace(0.0, 500.0, 600)[:, None, None]
    lags = np.arange(1, 40)
    found = squared_displacements(atoms, walk(600, 200, 0.1) + drift, lags)
    times = 0.01 * lags  # ps
    assert diffusion_coefficient(times, found["Ar"]) == pytest.approx(0.1**2 / 2.0 / 0.01, rel=0.05)


def test_error_of_an_average_over_correlated_frames():
    """An AR(1) series with correlation c has a statistical inefficiency of (1 + c) / (1 - c); seen to catch
    errors that take frames for independent."""
    random, c, n = np.random.default_rng(2), 0.9, 20000
    series = np.zeros(n)
    for k in range(1, n):
        series[k] = c * series[k - 1] + random.normal()
    assert statistical_inefficiency(series) == pytest.approx(19.0, rel=0.15)
    expected = 1.0 / (1.0 - c) / np.sqrt(n)  # of the mean
    assert mean_with_error([series[: n // 2], series[n // 2 :]])[1] == pytest.approx(expected, rel=0.15)
    assert statistical_inefficiency(random.normal(size=4000)) == pytest.approx(1.0, abs=0.15)
    assert statistical_inefficiency(np.full(50, 3.0)) == 50


def test_error_of_a_difference_of_replicas_that_differ():
    """As pressures at several densities; seen to catch: their differences taken for an error, which no bar
    on the pressure could then be below."""
    random = np.random.default_rng(2)
    deviations = []
    for _ in range(200):
        series, others = (
            [one + 100.0 * k for k, one in enumerate(random.standard_normal((4, 50)))] for _ in range(2)
        )
        difference, error = difference_with_error(series, others)
        deviations.append(difference / error)
    assert error < 0.5
    assert 0.7 < np.sqrt(np.mean(np.square(deviations))) < 1.3


def test_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(3).normal(size=12)
    mean, error = jackknife(values, lambda x: x)
    assert (mean, error) == pytest.approx((values.mean(), values.std(ddof=1) / np.sqrt(12)))
    assert np.isnan(jackknife(values[:1], lambda x: x)[1])


def test_blocks():
    assert block_means(np.arange(7.0), 3).tolist() == [1.5, 3.5, 5.5]  # the first frame is left out
    assert block_means(np.arange(2.0), 5).tolist() == [0.0, 1.0]


def test_error_of_groups():
    """Copies of a frame add nothing; seen to catch frames of one trajectory counted as independent."""
    values = np.random.default_rng(4).normal(size=10)
    alone = grouped_error(values, np.arange(10))
    assert alone == pytest.approx(values.std(ddof=1) / np.sqrt(10))
    assert grouped_error(np.repeat(values, 8), np.repeat(np.arange(10), 8)) == pytest.approx(alone)
    assert np.isnan(grouped_error(values, np.zeros(10)))


def test_slope_of_replicas_with_offsets():
    """Seen to catch one common intercept."""
    random, times = np.random.default_rng(5), np.linspace(0.0, 2.0, 400)
    series = [0.7 * times + offset + random.normal(0.0, 0.3, 400) for offset in (0.0, 50.0, -20.0)]
    slope, error = slope_with_error(times, series)
    assert abs(slope - 0.7) < 4.0 * error
    assert error == pytest.approx(0.3 / np.sqrt(1200) / times.std(), rel=0.5)


def test_slope_of_slow_fluctuations():
    """Energies wander for longer than a frame, which must not look like a drift: deviations are as large as
    their errors say; seen to catch frames taken for independent, which makes them four times as large."""
    random, times, deviations = np.random.default_rng(6), np.linspace(0.0, 1.0, 500), []
    for _ in range(40):
        noise = random.normal(size=(500, 2))
        for k in range(1, 500):
            noise[k] += 0.9 * noise[k - 1]
        slope, error = slope_with_error(times, list(noise.T))
        deviations.append(slope / error)
    assert 0.6 < np.sqrt(np.mean(np.square(deviations))) < 1.6


def recording(atoms: Atoms, positions: np.ndarray) -> Recording:
    """Of positions alone, a frame a step."""
    n, zeros = len(positions), np.zeros(len(positions))
    rest = np.zeros(positions.shape), zeros, np.zeros((n, 3, 3)), zeros, zeros
    return Recording(atoms, atoms, np.arange(1, n + 1), positions, *rest, None)


@pytest.mark.parametrize(
    ("n_replicas", "n_frames", "steps", "says"),
    [
        (2, 400, [0.1, 0.1], ""),
        (2, 400, [0.002, 0.002], "no diffusion to judge"),
        (2, 400, [0.03, 0.3], "too short to judge"),
        (1, 400, [0.1, 0.1], "too short to judge: 2 blocks"),
        (2, 100, [0.1, 0.1], "too short to judge: 1 ps a replica"),
    ],
)
def test_diffusion_says_when_it_cannot_be_judged(n_replicas, n_frames, steps, says):
    """Walks with the same coefficient; seen to catch a ratio given of atoms that only rattle,
    and an error taken from two blocks."""
    argon = Atoms(["Ar"] * 40, cell=[9.0] * 3, pbc=True)
    runs = [recording(argon, walk(n_frames, 40, steps[k % 2], seed=k)) for k in range(2 * n_replicas)]
    pair = Pair(runs[:n_replicas], runs[n_replicas:], time_step=10.0, temperature=90.0)
    found = compare_diffusion(pair)
    (line,) = found.lines
    assert says in line["note"]
    assert (line["value"] is None) == bool(says)
    if not says:
        assert abs(line["value"] - 1.0) < 4.0 * line["error"]
        assert found.tables[0]["rows"][0][1] == pytest.approx(10.0 * 0.1**2 / 2.0 / 0.01, rel=0.3)


@pytest.mark.parametrize(
    ("temperatures", "says"), [((300.0, 304.0), ""), ((280.0, 300.0), "teacher's run was at 280 K"),
                               ((300.0, 320.0), "student's run was at 320 K")]
)  # fmt: skip
def test_run_off_its_temperature_is_said(temperatures, says):
    """On every line of what is compared: 0.4 ps of water at 254 K once made a bond look too stiff by 12 %."""
    argon = Atoms(["Ar"] * 40, cell=[12.0] * 3, pbc=True)
    runs = [recording(argon, 3.0 * walk(40, 40, 0.8, k)) for k in range(2)]
    runs = [replace(run, temperatures=np.full(40, t)) for run, t in zip(runs, temperatures)]
    found = compare(Pair(runs[:1], runs[1:], time_step=1.0, temperature=300.0), 5.0)
    assert len(found.lines) >= 5
    assert all((says or "run was at") in line["note"] for line in found.lines) == bool(says)


def test_survivors_do_not_speak_for_all():
    """Seen to catch: bars on structure and drift passed by the one replica that did not blow up."""
    argon = Atoms(["Ar"] * 40, cell=[12.0] * 3, pbc=True)
    runs = [recording(argon, 3.0 * walk(40, 40, 0.8, k)) for k in range(3)]
    runs = [replace(run, temperatures=np.full(40, 300.0)) for run in runs]
    pair = Pair(runs[:1], runs[1:2], time_step=1.0, temperature=300.0)
    assert all("1 of 2 replicas blew up" in line["doubt"] for line in compare(pair, 5.0, n_lost=1).lines)
    assert not any("blew up" in line["doubt"] for line in compare(pair, 5.0).lines)
    moving = [
        replace(run, conserved=np.random.default_rng(k).standard_normal(40)) for k, run in enumerate(runs)
    ]
    assert drift_line(moving, 1.0)["doubt"] == ""
    assert drift_line([*moving[:2], replace(runs[2], cut="too hot")], 1.0)["doubt"] == "1 blew up"


def test_molecule_does_not_diffuse():
    water = ase.build.molecule("H2O")
    side = [recording(water, walk(400, 3, 0.1))]
    (line,) = compare_diffusion(Pair(side, side, 1.0, 300.0)).lines
    assert line["value"] is None
    assert "not periodic" in line["note"]
