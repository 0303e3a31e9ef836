# SPDX-License-Identifier: MIT
"""One force field, timed in an environment of its own; `peers.py` starts it and reads what it writes.

    PYTHON benchmarks/one_peer.py NAME request.npz answer.json

Needs NumPy, ASE and the package of the force field, and not mlffd: packages that cannot share an environment
are compared this way. The request holds the frames of a trajectory, so every evaluation has positions of its
own. What a force field is made of stands in PEERS below.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ase import Atoms


def main() -> None:
    """Three words: name, request, answer."""
    name, request, answer = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    make_calculator, description = PEERS[name]
    with np.load(request) as arrays:
        request = dict(arrays)
    calculator = make_calculator(request)
    package = description["package"]
    measured = measure(calculator, request)
    answer.write_text(json.dumps({**description, "version": version(package), **measured}))


def measure(calculator, request: dict) -> dict:
    """Times of one evaluation (energy and forces), wall clock and CPU, of as many frames as fit the seconds.

    ``request``: frames (n_frames, n_atoms, 3) in Å, numbers, cell, warm_up, repetitions, seconds.
    """
    frames, repetitions = request["frames"], int(request["repetitions"])
    atoms = Atoms(request["numbers"], frames[0], cell=request["cell"], pbc=True, calculator=calculator)
    warm_up = int(request["warm_up"])
    first = [evaluate(atoms, frame) for frame in frames[:warm_up]]
    room = (len(frames) - warm_up) // repetitions
    n_steps = int(np.clip(float(request["seconds"]) / repetitions / first[-1][0], 1, room))
    timed = [evaluate(atoms, frame) for frame in frames[warm_up : warm_up + repetitions * n_steps]]
    wall, cpu = np.reshape([times[:2] for times in timed], (repetitions, n_steps, 2)).mean(axis=1).T
    return {
        "steps": n_steps,
        "seconds_per_step": wall.tolist(),
        "cpu_seconds_per_step": cpu.tolist(),
        "energies": [evaluation[2] for evaluation in first + timed],
        "force_norms": [evaluation[3] for evaluation in first + timed],
    }


def evaluate(atoms: Atoms, positions: np.ndarray) -> tuple[float, float, float, float]:
    """Wall seconds, CPU seconds, energy in eV and norm of the forces in eV/Å at new positions."""
    wall, cpu = time.perf_counter(), time.process_time()
    atoms.positions = positions
    forces = atoms.get_forces()  # first: some calculators leave them out when asked for the energy
    energy = atoms.get_potential_energy()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if not (np.isfinite(energy) and np.isfinite(forces).all()):
        raise SystemExit("its energy or forces are not finite")
    return wall, cpu, float(energy), float(np.linalg.norm(forces))


def student(request: dict):
    """mlffd itself, as its user has it."""
    from mlffd import Calculator

    return Calculator(str(request["student"]), dtype="float32", backend=str(request["backend"]))


def sevennet(request: dict):
    """SevenNet-0, weights in its package."""
    from sevenn.calculator import SevenNetCalculator

    return SevenNetCalculator("7net-0", device="cpu")


def orb(request: dict):
    """The architecture of Orb-v2 with random weights; its trained ones would be a download."""
    import torch
    from orb_models.forcefield.atomic_system import SystemConfig
    from orb_models.forcefield.calculator import ORBCalculator
    from orb_models.forcefield.pretrained import orb_v2_architecture

    torch.manual_seed(0)
    model = orb_v2_architecture(
        device="cpu", system_config=SystemConfig(radius=6.0, max_num_neighbors=20)
    ).eval()
    return ORBCalculator(model.requires_grad_(False), device="cpu")


def ani(request: dict):
    """One network of ANI-1ccx."""
    import torchani

    return torchani.models.ANI1ccx(periodic_table_index=True)[0].float().ase()


def ani_committee(request: dict):
    """All eight, as its authors recommend."""
    import torchani

    return torchani.models.ANI1ccx(periodic_table_index=True).float().ase()


def chgnet(request: dict):
    """CHGNet 0.3.0 with its r2SCAN weights."""
    from chgnet.model import CHGNet
    from chgnet.model.dynamics import CHGNetCalculator

    return CHGNetCalculator(CHGNet.load(model_name="r2scan", use_device="cpu"), use_device="cpu")


def nep(request: dict):
    """A NEP potential of usual size with random parameters, in the format of GPUMD's ``nep.txt``."""
    from calorine.calculators import CPUNEP

    path = Path(str(request["folder"])) / "nep.txt"
    path.write_text(random_nep(("O", "H")))
    return CPUNEP(str(path))


NEP_CUTOFFS = 6.0, 5.0  # Å, radial and angular
NEP_ORDERS = 4, 4  # n_max: radial and angular functions, counted from 0
NEP_BASIS = 8, 8  # Chebyshev polynomials each is made of, counted from 0
NEP_L_MAX = 4, 2, 0  # three-body l, four-body on, five-body off
NEP_NEURONS = 30


def random_nep(elements: tuple[str, ...]) -> str:
    """A NEP4 potential (Fan et al., J. Chem. Phys. 157, 114801, 2022) as text.

    One number a line: network of each element, shared bias, expansion coefficients c_nk of each pair of
    elements, and a scale for each component of the descriptor.
    """
    n_elements, (radial, angular), basis = len(elements), NEP_ORDERS, NEP_BASIS
    n_descriptor = (radial + 1) + (angular + 1) * (NEP_L_MAX[0] + 1)
    n_network = n_elements * (n_descriptor + 2) * NEP_NEURONS + 1
    n_expansion = n_elements**2 * ((radial + 1) * (basis[0] + 1) + (angular + 1) * (basis[1] + 1))
    random = np.random.default_rng(0)
    numbers = [*random.normal(0.0, 0.1, n_network + n_expansion), *np.full(n_descriptor, 0.1)]
    header = [
        f"nep4 {n_elements} {' '.join(elements)}",
        f"cutoff {NEP_CUTOFFS[0]} {NEP_CUTOFFS[1]} 200 100",
        f"n_max {radial} {angular}",
        f"basis_size {basis[0]} {basis[1]}",
        f"l_max {NEP_L_MAX[0]} {NEP_L_MAX[1]} {NEP_L_MAX[2]}",
        f"ANN {NEP_NEURONS} 0",
    ]
    return "\n".join([*header, *(f"{number:.7e}" for number in numbers)]) + "\n"


# name: (calculator, what is said of it; max_neighbors where the model drops the farther ones)
PEERS = {
    "student": (student, {"package": "mlffd"}),
    "sevennet": (sevennet, {"package": "sevenn", "cutoff": 5.0, "weights": "trained"}),
    "orb": (orb, {"package": "orb-models", "cutoff": 6.0, "max_neighbors": 20, "weights": "random"}),
    "ani": (ani, {"package": "torchani", "cutoff": 5.2, "weights": "trained"}),
    "ani-8": (ani_committee, {"package": "torchani", "cutoff": 5.2, "weights": "trained"}),
    "chgnet": (chgnet, {"package": "chgnet", "cutoff": 6.0, "weights": "trained"}),
    "nep": (nep, {"package": "calorine", "cutoff": NEP_CUTOFFS[0], "weights": "random"}),
}

if __name__ == "__main__":
    main()
