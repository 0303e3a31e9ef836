"""Is a student sound? Checks of a bundle that need no teacher."""

from collections.abc import Callable

import numpy as np
from ase import Atoms

from mlffd.bundle import Bundle
from mlffd.engine import Engine
from mlffd.students.lennard_jones import LennardJonesStudent

STEP = 2e-4  # of finite differences: Å for positions, a tenth of it for strain
TOLERANCE = 1e-6  # relative, float64


def check(bundle: Bundle) -> list[tuple[str, bool, str]]:
    """Rows (what, passed, figure): forces and stress are derivatives of the energy, symmetries hold, float32
    agrees with float64, and compiled kernels with plain PyTorch. Checked is the backend that drivers get. The
    structure is random and the same at every call."""
    exact = Engine(bundle, dtype="float64")
    atoms = random_structure(bundle)
    rows = [
        ("atoms feel each other", rms(exact.evaluate([atoms])[0].forces) > 1e-12, "forces are not all zero"),
        row("forces are the gradient of the energy", force_error(exact, atoms), TOLERANCE),
        row("stress is the strain derivative of the energy", stress_error(exact, atoms), TOLERANCE),
        row("energy does not change under rotation", rotation_error(exact, atoms), 1e-10),
        row("float32 forces agree with float64", single_precision_error(exact, bundle, atoms), 1e-4),
    ]
    if exact.backend != "reference":
        error = backend_error(exact, bundle, atoms)
        rows.append(row(f"the {exact.backend} backend's forces agree with plain PyTorch's", error, 1e-10))
    return rows


def row(what: str, error: float, tolerance: float) -> tuple[str, bool, str]:
    return what, bool(error < tolerance), f"relative error {error:.1e}, at most {tolerance:.0e}"


def random_structure(bundle: Bundle) -> Atoms:
    """16 atoms of the student's species in a small skewed periodic cell, none too close to another."""
    rng = np.random.default_rng(0)
    spacing = min(2.2, 0.6 * bundle.student.cutoff)
    if isinstance(bundle.student, LennardJonesStudent):
        spacing = 1.2 * float(max(bundle.student.sigma))
    sites = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1, 2, 3], indexing="ij"), -1).reshape(-1, 3)
    cell = np.diag([2.0, 2.0, 4.0]) + np.array([[0, 0, 0], [0.2, 0, 0], [0.1, 0.3, 0]])
    numbers = [bundle.student.species[k % len(bundle.student.species)] for k in range(len(sites))]
    positions = (sites + rng.uniform(-0.1, 0.1, sites.shape)) * spacing
    return Atoms(numbers, positions=positions, cell=cell * spacing, pbc=True)


def force_error(engine: Engine, atoms: Atoms) -> float:
    """Largest difference between forces and central differences of the energy, relative to the RMS force."""
    forces = engine.evaluate([atoms])[0].forces
    differences = []
    for atom, axis in ((0, 0), (5, 1), (11, 2)):
        slope = derivative(lambda d, k=atom, x=axis: engine.evaluate([moved(atoms, k, x, d)])[0].energy, STEP)
        differences.append(forces[atom, axis] + slope)
    return float(np.abs(differences).max() / scale(forces))


def derivative(function: Callable[[float], float], step: float) -> float:
    """Derivative at zero by central differences of fourth order."""
    near, far = (function(k * step) - function(-k * step) for k in (1, 2))
    return (8.0 * near - far) / (12.0 * step)


def moved(atoms: Atoms, atom: int, axis: int, step: float) -> Atoms:
    copy = atoms.copy()
    copy.positions[atom, axis] += step
    return copy


def stress_error(engine: Engine, atoms: Atoms) -> float:
    """Largest difference between the stress and central differences under strain, relative to its RMS."""
    stress = engine.evaluate([atoms])[0].stress
    differences = []
    for a, b in ((0, 0), (1, 2), (2, 0)):
        direction = np.zeros((3, 3))
        direction[a, b] = 1.0
        slope = derivative(
            lambda d, e=direction: engine.evaluate([strained(atoms, d * e)])[0].energy, 0.1 * STEP
        )
        differences.append(stress[a, b] - slope / atoms.get_volume())
    return float(np.abs(differences).max() / scale(stress))


def strained(atoms: Atoms, strain: np.ndarray) -> Atoms:
    copy = atoms.copy()
    copy.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    return copy


def rotation_error(engine: Engine, atoms: Atoms) -> float:
    """Relative change of the energy under a rotation of atoms and cell."""
    turned = atoms.copy()
    turned.rotate(50, (1, 2, 3), rotate_cell=True)
    before, after = (engine.evaluate([a])[0].energy for a in (atoms, turned))
    return abs(after - before) / max(abs(before), 1.0)


def single_precision_error(exact: Engine, bundle: Bundle, atoms: Atoms) -> float:
    """Largest difference of forces in float32 and float64, relative to their RMS."""
    forces = exact.evaluate([atoms])[0].forces
    difference = Engine(bundle, dtype="float32").evaluate([atoms])[0].forces - forces
    return float(np.abs(difference).max() / scale(forces))


def backend_error(exact: Engine, bundle: Bundle, atoms: Atoms) -> float:
    """Largest difference of the backend's forces and plain PyTorch's, relative to their RMS, in float64."""
    forces = exact.evaluate([atoms])[0].forces
    reference = Engine(bundle, dtype="float64", backend="reference").evaluate([atoms])[0].forces
    return float(np.abs(forces - reference).max() / scale(reference))


def rms(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).mean()))


def scale(values: np.ndarray) -> float:
    """RMS, kept from zero."""
    return max(rms(values), 1e-8)
