# SPDX-License-Identifier: MIT
"""Flexible classical water, SPC/Fw: a cheap source of liquid-like frames for a teacher to label.

Y. Wu, H. L. Tepper and G. A. Voth, J. Chem. Phys. 124, 024503 (2006), doi:10.1063/1.2136877.
Coulomb forces by the damped, shifted form of C. J. Fennell and J. D. Gezelter,
J. Chem. Phys. 124, 234104 (2006), doi:10.1063/1.2206581, which needs no Ewald sum.
"""

import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.units import Bohr, Hartree, kcal, mol
from scipy.special import erfc

COULOMB = Hartree * Bohr  # eV Å for two unit charges
SITE_CHARGES = np.array([-0.82, 0.41, 0.41])


class FlexibleWater(Calculator):
    """Energy (eV) and forces (eV/Å) of water molecules given as O, H, H, O, H, H, ... in an orthorhombic box.

    `bond_length` (Å) and `angle` (degrees) default to the published ones; other values move the
    molecules towards a teacher's own geometry. `cutoff` (Å) must fit into half the box.
    """

    implemented_properties = ("energy", "forces")

    def __init__(self, bond_length=1.012, angle=113.24, cutoff=6.0, damping=0.2):
        super().__init__()
        self.bond_length, self.angle = bond_length, np.deg2rad(angle)
        self.bond_stiffness = 1059.162 * kcal / mol  # eV/Å^2
        self.angle_stiffness = 75.90 * kcal / mol  # eV/rad^2
        self.sigma, self.epsilon = 3.165492, 0.1554253 * kcal / mol
        self.cutoff, self.damping = cutoff, damping
        self.n_molecules = 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self._prepare(self.atoms)
        forces = np.zeros((len(self.atoms), 3))
        energy = self._molecules(forces) + self._pairs(forces)
        self.results = {"energy": energy, "free_energy": energy, "forces": forces}

    def _prepare(self, atoms):
        """Check the box and list the pairs of different molecules, once for each number of atoms."""
        if len(atoms) % 3 or (atoms.numbers.reshape(-1, 3) != [8, 1, 1]).any():
            raise ValueError("flexible water needs atoms in the order O, H, H, O, H, H, ...")
        self.box = np.diag(atoms.cell.array)
        if not atoms.cell.orthorhombic or self.box.min() < 2 * self.cutoff or not atoms.pbc.all():
            raise ValueError(
                f"flexible water needs a periodic orthorhombic box of at least {2 * self.cutoff:g} Å"
            )
        if self.n_molecules == len(atoms) // 3:
            return
        self.n_molecules = len(atoms) // 3
        i, j = np.triu_indices(len(atoms), k=1)
        other = i // 3 != j // 3
        self.i, self.j = i[other], j[other]
        self.charge_product = COULOMB * SITE_CHARGES[self.i % 3] * SITE_CHARGES[self.j % 3]
        self.both_oxygen = (self.i % 3 == 0) & (self.j % 3 == 0)

    def _nearest_image(self, vectors):
        return vectors - self.box * np.round(vectors / self.box)

    def _molecules(self, forces):
        """Harmonic bonds and angle of every molecule."""
        sites = self.atoms.positions.reshape(-1, 3, 3)
        arms = self._nearest_image(sites[:, 1:] - sites[:, :1])  # (n_molecules, 2, 3)
        lengths = np.linalg.norm(arms, axis=2, keepdims=True)
        units = arms / lengths
        cosine = np.clip((units[:, 0] * units[:, 1]).sum(1), -0.999999, 0.999999)[:, None, None]
        stretch, bend = lengths - self.bond_length, np.arccos(cosine) - self.angle
        # d(angle)/d(arm) = (cos * unit - other unit) / (length * sin)
        turn = (cosine * units - units[:, ::-1]) / (lengths * np.sqrt(1 - cosine**2))
        pull = -self.bond_stiffness * stretch * units - self.angle_stiffness * bend * turn
        by_site = forces.reshape(-1, 3, 3)
        by_site[:, 1:] += pull
        by_site[:, 0] -= pull.sum(1)
        energy = self.bond_stiffness * (stretch**2).sum() + self.angle_stiffness * (bend**2).sum()
        return 0.5 * float(energy)

    def _pairs(self, forces):
        """Damped, shifted Coulomb between all sites and shifted-force Lennard-Jones between oxygens."""
        vectors = self._nearest_image(self.atoms.positions[self.j] - self.atoms.positions[self.i])
        squared = np.einsum("ij,ij->i", vectors, vectors)
        near = np.flatnonzero(squared < self.cutoff**2)
        vectors, distance = vectors[near], np.sqrt(squared[near])
        energy, slope = _shifted_force(self._coulomb, distance, self.cutoff)
        energy, slope = self.charge_product[near] * energy, self.charge_product[near] * slope
        oxygen = self.both_oxygen[near]
        lj_energy, lj_slope = _shifted_force(self._lennard_jones, distance[oxygen], self.cutoff)
        energy[oxygen] += lj_energy
        slope[oxygen] += lj_slope
        pulls = (slope / distance)[:, None] * vectors
        for axis in range(3):
            forces[:, axis] += np.bincount(self.i[near], pulls[:, axis], len(forces))
            forces[:, axis] -= np.bincount(self.j[near], pulls[:, axis], len(forces))
        return float(energy.sum())

    def _coulomb(self, r):
        screened = erfc(self.damping * r) / r
        gaussian = 2 * self.damping / np.sqrt(np.pi) * np.exp(-((self.damping * r) ** 2))
        return screened, -(screened + gaussian) / r

    def _lennard_jones(self, r):
        sixth = (self.sigma / r) ** 6
        return 4 * self.epsilon * (sixth**2 - sixth), -24 * self.epsilon * (2 * sixth**2 - sixth) / r


def _shifted_force(potential, r, cutoff):
    """Shift a pair potential so that its energy and its slope vanish at the cutoff."""
    energy, slope = potential(r)
    end_energy, end_slope = potential(np.array([cutoff]))
    return energy - end_energy - end_slope * (r - cutoff), slope - end_slope
