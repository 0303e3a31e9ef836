"""mlffd: distil a machine-learned force field into a fast student; run it in LAMMPS, i-PI and ASE."""

from importlib import import_module

__all__ = ["Calculator", "Engine", "MlffdError", "load"]

HOMES = {"Calculator": "mlffd.drivers.ase_calculator", "Engine": "mlffd.engine", "MlffdError": "mlffd.errors"}


def load(path_or_name, device: str = "cpu", dtype: str = "float32", backend: str = "auto"):
    """An ``Engine`` for a bundle file, or for a student shipped with mlffd by its name, such as ``water``."""
    return __getattr__("Engine")(path_or_name, device=device, dtype=dtype, backend=backend)


def __getattr__(name: str):
    # imported on first use: the command line and the label workers need no torch to start
    if name not in HOMES:
        raise AttributeError(f"module 'mlffd' has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)
