# SPDX-License-Identifier: MIT
"""Dynamics of many replicas against what statistical mechanics and integrators are known to give."""

from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.lj import LennardJones
from ase.lattice.cubic import FaceCenteredCubic
from ase.md.verlet import VelocityVerlet

from mlffd.dynamics import Trajectories
from mlffd.engine import Engine
from mlffd.errors import ConfigError, MlffdError, StructureError
from mlffd.evaluation import evaluate_with
from mlffd.students import build_student
from mlffd.units import BOLTZMANN, FEMTOSECOND

STIFFNESS = 2.0  # eV/Å^2; a hydrogen atom then swings in 46 fs
ARGON = {"family": "lennard_jones", "species": [18], "cutoff": 6.0, "epsilon": [0.0104], "sigma": [3.4]}


class Springs:
    """Each atom held by a spring at a site of its own; a quartic one makes motions anharmonic."""

    def __init__(self, stiffness=STIFFNESS, quartic=0.0):
        self.stiffness, self.quartic, self.n_calls = stiffness, quartic, 0

    def __call__(self, structures):
        self.n_calls += 1
        return [self.of(atoms.positions - sites(len(atoms))) for atoms in structures]

    def of(self, moved):
        squares = moved * moved
        energy = 0.5 * self.stiffness * squares.sum() + 0.25 * self.quartic * (squares * squares).sum()
        forces = -self.stiffness * moved - self.quartic * squares * moved
        return SimpleNamespace(energy=energy, forces=forces, stress=None)


def sites(n_atoms):
    return 10.0 * np.stack([np.arange(n_atoms), np.zeros(n_atoms), np.zeros(n_atoms)], axis=1)


def swinging(n_atoms=1, moved=0.0, symbol="H"):
    return Atoms([symbol] * n_atoms, positions=sites(n_atoms) + [moved, 0.0, 0.0])


def argon(seed=0, size=2):
    atoms = FaceCenteredCubic("Ar", size=(size,) * 3, latticeconstant=5.4)
    atoms.rattle(0.1, seed=seed)
    return atoms


def argon_engine():
    return Engine(build_student(ARGON), dtype="float64")


def argon_in_ase():
    return LennardJones(epsilon=0.0104, sigma=3.4, rc=6.0)


# ---- constant energy ----


def test_an_oscillator_swings_as_it_should():
    """Velocity Verlet's own cosine: its frequency is arccos(1 - (w dt)^2 / 2) / dt.

    Seen to fail: half a step of the momenta left out, positions moved with the momenta of the step before.
    """
    start = swinging(moved=0.3)
    mass = start.get_masses()[0]
    run = Trajectories([start], Springs(), 1.0, fixed_center=False)
    phase = np.arccos(1.0 - 0.5 * STIFFNESS / mass * FEMTOSECOND**2)
    for n in range(1, 60):
        run.run(1)
        assert run.structures[0].positions[0, 0] == pytest.approx(0.3 * np.cos(n * phase), abs=1e-10)


def test_error_of_the_energy_falls_with_the_square_of_the_time_step():
    """Seen to fail: forces of the step before in the second half of a step (first order)."""
    errors = []
    for time_step in (8.0, 4.0, 2.0):
        run = Trajectories([argon()], argon_engine().evaluate, time_step)
        start, worst = run.conserved[0], 0.0
        for _ in range(40):
            run.run(round(8.0 / time_step))
            worst = max(worst, abs(run.conserved[0] - start))
        errors.append(worst)
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.25)
    assert errors[1] / errors[2] == pytest.approx(4.0, rel=0.25)


def test_the_same_as_velocity_verlet_of_ase():
    """Independent of our integrator: units, masses and momenta are right."""
    ours = Trajectories([argon()], evaluate_with(argon_in_ase()), 5.0, 60.0, seed=3)  # for its momenta
    start = ours.structures[0].copy()
    ours = Trajectories([start], evaluate_with(argon_in_ase()), 5.0)
    ours.run(40)
    theirs = start.copy()
    theirs.calc = argon_in_ase()
    VelocityVerlet(theirs, 5.0 * FEMTOSECOND).run(40)
    np.testing.assert_allclose(ours.structures[0].positions, theirs.positions, atol=1e-9)
    np.testing.assert_allclose(ours.structures[0].get_momenta(), theirs.get_momenta(), atol=1e-9)
    assert ours.temperatures_now[0] == pytest.approx(theirs.get_temperature() * 32 / 31)


# ---- Langevin ----


def test_equipartition_of_oscillators():
    """Positions as Boltzmann says to within statistics, also at a time step at which momenta are off.

    BAOAB samples the positions of harmonic oscillators without an error in the time step, and momenta with
    the variance kT m (1 - (w dt)^2 / 4) (Leimkuhler and Matthews, J. Chem. Phys. 138, 174102, 2013). Seen to
    fail: noise of one axis used for all, noise that does not fit the friction, noise without the mass.
    """
    time_step, temperatures = 5.0, [100.0, 400.0]
    hydrogen, heavy = swinging(60), swinging(60, symbol="He")
    run = Trajectories(
        [hydrogen, heavy], Springs(), time_step, temperatures, time_constant=20.0, seed=1, fixed_center=False
    )
    potential, kinetic = [], []
    for _ in range(3000):
        run.run(1)
        for atoms, prediction in zip(run.structures, run.predictions):
            potential.append(prediction.energy)
            kinetic.append(atoms.get_kinetic_energy())
    potential, kinetic = (np.mean(np.reshape(e, (-1, 2))[400:], axis=0) for e in (potential, kinetic))
    expected = 0.5 * 180 * BOLTZMANN * np.array(temperatures)
    masses = np.array([hydrogen.get_masses()[0], heavy.get_masses()[0]])
    shrunk = 1.0 - 0.25 * STIFFNESS / masses * (time_step * FEMTOSECOND) ** 2
    np.testing.assert_allclose(potential / expected, 1.0, atol=0.03)
    np.testing.assert_allclose(kinetic / expected, shrunk, atol=0.03)
    moved = (run.structures[0].positions - sites(60)).T
    assert np.abs(np.corrcoef(moved)[np.triu_indices(3, 1)]).max() < 0.5


def test_heat_is_accounted_for():
    """What is conserved stays, while the energy follows the thermostat. Seen to fail: heat counted half."""
    run = Trajectories([swinging(20)], Springs(), 0.5, 300.0, time_constant=50.0, seed=4, fixed_center=False)
    energies, conserved = [], []
    for _ in range(100):
        run.run(5)
        energies.append(run.predictions[0].energy + run.structures[0].get_kinetic_energy())
        conserved.append(run.conserved[0])
    assert np.ptp(energies) > 1.0
    assert np.ptp(conserved) < 2e-3


def test_the_center_of_mass_stays_and_takes_no_heat():
    """Seen to fail: noise with a net momentum; 3 n degrees of freedom in the temperature."""
    run = Trajectories([argon(), argon(1)], argon_engine().evaluate, 5.0, 90.0, 50.0, seed=2)
    before = [atoms.get_center_of_mass() for atoms in run.structures]
    temperatures = []
    for _ in range(200):
        run.run(4)
        temperatures.append(run.temperatures_now)
    for atoms, center in zip(run.structures, before):
        np.testing.assert_allclose(atoms.get_center_of_mass(), center, atol=1e-9)
        np.testing.assert_allclose(atoms.get_momenta().sum(axis=0), 0.0, atol=1e-9)
    assert np.mean(temperatures[50:]) == pytest.approx(90.0, rel=0.04)


def test_momenta_of_structures_are_kept_and_others_drawn():
    moving = argon()
    moving.set_momenta(np.linspace(-1, 1, 96).reshape(32, 3))
    run = Trajectories([moving, argon(), argon()], argon_engine().evaluate, 1.0, [50.0, 50.0, 900.0], seed=1)
    kept, drawn, hot = (atoms.get_momenta() for atoms in run.structures)
    np.testing.assert_allclose(kept, moving.get_momenta() - moving.get_momenta().mean(axis=0))
    assert run.temperatures_now[1] == pytest.approx(50.0, rel=0.5)
    assert run.temperatures_now[2] == pytest.approx(900.0, rel=0.5)
    assert abs(np.corrcoef(drawn.ravel(), hot.ravel())[0, 1]) < 0.4  # each its own
    at_rest = Trajectories([argon()], argon_engine().evaluate, 1.0)
    assert not at_rest.structures[0].get_momenta().any()


# ---- r-RESPA ----


def test_respa_with_an_impulse_every_step_is_the_slow_force_alone():
    """Seen to fail: impulses not halved, the slow force in place of the difference."""
    fast, slow = Springs(0.5 * STIFFNESS), Springs()
    respa = Trajectories([swinging(3, 0.2)], fast, 1.0, 300.0, seed=5, slow=slow, fixed_center=False)
    plain = Trajectories([swinging(3, 0.2)], slow, 1.0, 300.0, seed=5, fixed_center=False)
    for _ in range(20):
        respa.run(1)
        plain.run(1)
        np.testing.assert_allclose(respa.structures[0].positions, plain.structures[0].positions, atol=1e-12)
        np.testing.assert_allclose(respa.conserved, plain.conserved, atol=1e-12)


def test_respa_follows_the_slow_force_for_a_fraction_of_its_price():
    """It conserves the slow energy and stays near the full run, which the fast force alone does not.

    Seen to fail: the impulse of one step only, the fast energy in what is conserved.
    """
    exact, student = Springs(STIFFNESS, 3.0), Springs(0.98 * STIFFNESS, 2.5)

    def run(evaluate, **settings):
        trajectories = Trajectories([start], evaluate, 0.5, fixed_center=False, **settings)
        conserved = []
        for _ in range(100):
            trajectories.run(4)
            conserved.append(trajectories.conserved[0])
        return trajectories, np.ptp(conserved)

    start = Trajectories([swinging(10)], exact, 0.5, 600.0, seed=1, fixed_center=False).structures[0]
    full, _ = run(exact)
    alone, _ = run(student)
    exact.n_calls = 0
    respa, drift = run(student, slow=exact, slow_every=4)
    assert exact.n_calls == 1 + 100

    def away(trajectories):
        return np.abs(trajectories.structures[0].positions - full.structures[0].positions).max()

    assert away(respa) < 0.1 * away(alone)
    assert drift < 0.01
    assert respa.slow_predictions[0].energy == exact(respa.structures)[0].energy


# ---- one of many ----


@pytest.mark.parametrize("force_field", ["springs", "student"])
def test_a_replica_is_the_same_alone_and_in_company_and_in_pieces(force_field):
    """Bit for bit. Seen to fail: one stream of random numbers for all, drawn anew after each call of run."""
    if force_field == "springs":
        starts, evaluate = [swinging(3), swinging(1), swinging(7)], Springs(STIFFNESS, 3.0)
    else:
        starts, evaluate = [argon(0), argon(1, size=3), argon(2)], argon_engine().evaluate
    temperatures, seeds = [60.0, 90.0, 120.0], [11, 12, 13]
    together = Trajectories(starts, evaluate, 2.0, temperatures, seed=seeds)
    together.run(37)
    for k in range(3):
        alone = Trajectories([starts[k]], evaluate, 2.0, temperatures[k], seed=[seeds[k]])
        for piece in (1, 15, 0, 21):
            alone.run(piece)
        for name in ("positions", "momenta"):
            now, other = alone.structures[0].arrays[name], together.structures[k].arrays[name]
            np.testing.assert_array_equal(now, other)
        assert alone.conserved[0] == together.conserved[k]


def test_other_seeds_and_other_replicas_are_others():
    def run(seed):
        trajectories = Trajectories([argon()] * 2, argon_engine().evaluate, 5.0, 90.0, seed=seed)
        trajectories.run(20)
        return [atoms.positions for atoms in trajectories.structures]

    a, b = run(1)
    c, _ = run(2)
    assert min(np.abs(a - b).max(), np.abs(a - c).max()) > 1e-2


def test_a_run_goes_on_where_another_one_ended():
    """With the noise that the first would have had next. Seen to fail: random numbers begin again."""
    evaluate = Springs(STIFFNESS, 3.0)
    whole = Trajectories([swinging(5)], evaluate, 1.0, 90.0, seed=6)
    whole.run(45)
    first = Trajectories([swinging(5)], evaluate, 1.0, 90.0, seed=6)
    first.run(21)
    rest = Trajectories(first.structures, evaluate, 1.0, 90.0, seed=6, first_step=21)
    rest.run(24)
    np.testing.assert_array_equal(rest.structures[0].positions, whole.structures[0].positions)


def test_starts_are_copied_and_constraints_not_kept():
    start = argon()
    before = start.copy()
    Trajectories([start, start], argon_engine().evaluate, 5.0, 90.0).run(5)
    assert start == before
    assert not start.has("momenta")


# ---- cut ----


class Misbehaving(Springs):
    """Springs until step ``after``; then ``wrong`` happens to the replica with three atoms."""

    def __init__(self, after, wrong):
        super().__init__()
        self.after, self.wrong = after, wrong

    def __call__(self, structures):
        found = super().__call__(structures)
        if self.n_calls > self.after + 1:
            for atoms, prediction in zip(structures, found):
                if len(atoms) == 3:
                    self.wrong(atoms, prediction)
        return found


def pulled(atoms, prediction):
    prediction.forces[1] += 1e3


def not_a_number(atoms, prediction):
    prediction.forces[1] = np.nan


def refused(atoms, prediction):
    raise MlffdError("no such structure")


def heated(atoms, prediction):
    prediction.forces += 20.0 * np.sign(atoms.get_momenta())


def fused(atoms, prediction):
    atoms.positions[1] = atoms.positions[0] + 0.02
    prediction.forces[:] = 0.0  # as calm as can be


@pytest.mark.parametrize(
    ("wrong", "says", "within"),
    [
        (pulled, "largest force is 1.73e+03", 1),
        (not_a_number, "largest force is nan", 1),
        (refused, "MlffdError: no such structure", 1),
        (heated, "temperature is", 30),
        (fused, "closer than half a bond: H-H 0.0", 10),
    ],
)
def test_what_blows_up_is_cut_and_the_others_go_on(wrong, says, within):
    """Seen to fail: all cut, or none; the wrong one; the state after the blow-up kept; noise shifted."""
    starts = [swinging(2), swinging(3), swinging(4)]

    def trajectories(evaluate):
        return Trajectories(starts, evaluate, 1.0, 300.0, seed=8, fixed_center=False)

    run, undisturbed = trajectories(Misbehaving(57, wrong)), trajectories(Springs())
    run.run(57)
    assert run.cut == [None] * 3
    run.run(within)
    assert says in run.cut[1]
    run.run(90 - within - 57)
    undisturbed.run(50)
    # the last look was at step 50
    np.testing.assert_array_equal(run.structures[1].positions, undisturbed.structures[1].positions)
    assert [frame.info["step"] for frame in run.before_cut[1]] == [10, 30, 40, 50]
    np.testing.assert_array_equal(run.before_cut[1][-1].positions, run.structures[1].positions)
    undisturbed.run(40)
    for k in (0, 2):
        assert run.cut[k] is None
        assert run.before_cut[k] == []
        np.testing.assert_array_equal(run.structures[k].positions, undisturbed.structures[k].positions)
    assert list(np.isnan(run.temperatures_now)) == [False, True, False]
    assert list(np.isnan(run.conserved)) == [False, True, False]
    assert [p is None for p in run.predictions] == [False, True, False]


def test_a_look_on_demand():
    """Between two looks that come by themselves. Seen to fail: no look."""
    run = Trajectories([swinging(2), swinging(3)], Misbehaving(53, fused), 1.0, 300.0, fixed_center=False)
    run.run(54)
    assert run.cut == [None, None]
    run.check()
    assert [reason is None for reason in run.cut] == [True, False]
    assert run.before_cut[1][-1].info["step"] == 50


def test_a_slow_force_can_cut_too():
    run = Trajectories(
        [swinging(2), swinging(3)], Springs(), 1.0, 300.0, slow=Misbehaving(5, refused), slow_every=4
    )
    run.run(80)
    assert [reason is None for reason in run.cut] == [True, False]
    assert run.n_steps == 80


def test_all_cut_ends_the_run():
    run = Trajectories([swinging(3)] * 2, Misbehaving(20, refused), 1.0, 300.0)
    run.run(1000)
    assert all(run.cut)
    assert run.n_steps < 30
    run.run(1000)
    assert np.isnan(run.conserved).all()


def test_a_start_that_is_no_structure_is_cut_at_once():
    run = Trajectories([Atoms("H2", [[0, 0, 0], [0, 0, 0.2]]), swinging(2)], Springs(0.0), 1.0, 300.0)
    assert [reason is None for reason in run.cut] == [False, True]
    assert "half a bond" in run.cut[0]


def test_few_hot_atoms_are_no_blow_up():
    """Three times the temperature is nothing rare for one atom. Seen to fail: 3 T + 1000 K for all."""
    run = Trajectories([swinging(1)] * 40, Springs(), 1.0, 900.0, 20.0, seed=1, fixed_center=False)
    run.run(600)
    assert run.cut == [None] * 40


# ---- what cannot be meant ----


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"structures": []}, "no structure"),
        ({"time_step": 0.0}, "time step must be above zero"),
        ({"temperatures": [300.0, -1.0]}, "temperatures must be above zero"),
        ({"temperatures": [300.0] * 3}, "3 temperatures for 2 structures"),
        ({"time_constant": 0.0}, "time constant must be above zero"),
        ({"seed": [1, 2, 3]}, "2 structures need as many seeds, not 3"),
        ({"seed": -1}, "seed"),
        ({"slow_every": 0}, "slow_every must be at least 1"),
        ({"slow_every": 4, "first_step": 6}, "multiple"),
    ],
)
def test_settings_that_cannot_be_meant(settings, says):
    settings = {"structures": [swinging(2)] * 2, "evaluate": Springs(), "time_step": 1.0, **settings}
    with pytest.raises(ConfigError, match=says):
        Trajectories(**settings)


def test_structures_that_cannot_be_run():
    with pytest.raises(StructureError, match="structure 1 has no atoms"):
        Trajectories([swinging(), Atoms()], Springs(), 1.0)
    with pytest.raises(StructureError, match="structure 0 has an atom without mass"):
        Trajectories([Atoms("H", masses=[0.0])], Springs(), 1.0)
    with pytest.raises(ConfigError, match="7 steps are no multiple of slow_every = 2"):
        Trajectories([swinging()], Springs(), 1.0, slow=Springs(), slow_every=2).run(7)


def test_a_set_up_that_is_wrong_is_no_blow_up():
    with pytest.raises(MlffdError, match="no such structure"):
        Trajectories([swinging(3)], Misbehaving(-1, refused), 1.0, 300.0)
