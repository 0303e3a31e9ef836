"""Units: eV and Å inside, everything else is converted at the border where it enters or leaves."""

import ase.units

HARTREE = ase.units.Hartree  # eV
BOHR = ase.units.Bohr  # Å
GPA = ase.units.GPa  # eV/Å^3
FEMTOSECOND = ase.units.fs  # ASE's time unit, Å sqrt(u/eV)
BOLTZMANN = ase.units.kB  # eV/K
