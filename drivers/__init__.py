# SPDX-License-Identifier: MIT
"""Couplings of the engine to simulation codes: ASE, i-PI and LAMMPS.

This folder is installed as the package ``mlffd.drivers``. Each file speaks one code's language and turns
it into calls of :class:`mlffd.engine.Engine`; none of them knows which student or backend answers.
"""
