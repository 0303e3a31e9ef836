# SPDX-License-Identifier: MIT
"""What a training is told: the student's family and sizes, and the settings of the loop."""

import dataclasses
from dataclasses import dataclass

from mlffd.errors import BundleError, ConfigError
from mlffd.students import build_student


@dataclass(frozen=True)
class StudentConfig:
    """Table [student]: family and sizes; what is left out has the family's default.

    ``species`` are atomic numbers, by default the elements of the labels; ``cutoff`` is in Å.
    """

    family: str = "local"
    species: list | None = None
    cutoff: float | None = None
    n_radial: int | None = None
    l_max: int | None = None  # local
    channels: int | None = None
    hidden: list | None = None
    features: int | None = None  # painn
    layers: int | None = None
    epsilon: list | None = None  # lennard_jones
    sigma: list | None = None

    def __post_init__(self):
        """Refuse what no student can be.

        Raises:
            ConfigError: unknown family, or a size that it does not have or cannot have.
        """
        known = {"species": [1]} if self.epsilon is None else {"species": [1] * len(self.epsilon)}
        try:
            build_student({**known, **self.architecture})
        except BundleError as error:
            raise ConfigError(f"student: {error}") from error

    @property
    def architecture(self) -> dict:
        """What ``train`` takes: the entries that were given."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


# the least and the largest a setting of TrainConfig may be
BOUNDS = {
    "epochs": (1, 1e6),
    "patience": (0, 1e6),
    "batch_size": (1, 1e6),
    "batch_atoms": (0, 1e9),
    "learning_rate": (1e-12, 10.0),
    "final_learning_rate": (0.0, 10.0),
    "energy_weight": (0.0, 1e12),
    "force_weight": (0.0, 1e12),
    "stress_weight": (0.0, 1e12),
    "hessian_weight": (0.0, 1e12),
    "force_scale": (0.0, 1e12),
    "validation_fraction": (0.0, 0.9),
    "average_decay": (0.0, 1.0),
    "gradient_clip": (1e-12, 1e12),
    "seed": (0, 2**63 - 1),
}


# settings that came later: where they are off, students trained before them are of the same run
OFF = {"force_scale": 0.0}


@dataclass(frozen=True)
class TrainConfig:
    """Table [train]: settings of the loop; the weights are those of ``mlffd.train.loss.loss``."""

    epochs: int = 40
    patience: int = 0  # epochs without a better validation loss after which training ends; 0: never
    batch_size: int = 1  # structures; more of them where they are small molecules
    batch_atoms: int = 0  # a batch of more atoms is cut short, to one structure at the least; 0: no limit
    learning_rate: float = 2e-3
    final_learning_rate: float = 1e-5
    energy_weight: float = 10.0
    force_weight: float = 1.0
    stress_weight: float = 1.0
    force_scale: float = 0.0  # eV/Å; structures with larger forces (RMS) count less; 0: all count alike
    hessian_weight: float = 0.0  # of one random row a structure and step, where labels have rows
    validation_fraction: float = 0.05  # of the frames, where no validation labels are given
    average_decay: float = 0.999  # of the running average of weights that becomes the student
    gradient_clip: float = 1.0
    seed: int = 0

    def __post_init__(self):
        """Refuse settings that cannot be meant.

        Raises:
            ConfigError: naming the first such setting.
        """
        for name, (low, high) in BOUNDS.items():
            value = getattr(self, name)
            if isinstance(value, int | float) and not low <= value <= high:
                raise ConfigError(f"training setting {name} = {value} is not between {low:g} and {high:g}")
