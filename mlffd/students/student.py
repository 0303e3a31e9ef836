"""What all students share: species, a cutoff, and atomic energies on top of the baseline."""

from abc import abstractmethod

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from mlffd.errors import ConfigError, UnknownElementError
from mlffd.graph import Graph
from mlffd.students.baseline import Baseline


class Student(nn.Module):
    """A function from edge vectors to atomic energies.

    ``species`` (atomic numbers) and ``cutoff`` (Å) are kept among the tensors as well, so that a bare
    state dict tells what it was.
    """

    family = ""
    n_layers = 1  # how many edges away an atom still matters

    def __init__(self, species: tuple[int, ...], cutoff: float):
        super().__init__()
        self.species = tuple(int(number) for number in species)
        self.cutoff = float(cutoff)
        self.register_buffer("species_numbers", torch.tensor(self.species))
        self.register_buffer("cutoff_radius", torch.tensor(self.cutoff, dtype=torch.float64))
        index = torch.full((len(chemical_symbols),), -1)
        index[list(self.species)] = torch.arange(len(self.species))
        self.register_buffer("index_of_number", index, persistent=False)

    @property
    @abstractmethod
    def architecture(self) -> dict:
        """JSON-able arguments of ``build_student``."""

    @abstractmethod
    def forward(self, graph: Graph) -> Tensor:
        """Atomic energies (n_centers,) in eV, float64."""

    def last_features(self, graph: Graph) -> Tensor:
        """What tells environments of one species apart for this student: (n_centers, n_features).

        Its learned energy is linear in them, with weights that may differ from species to species.

        Raises:
            ConfigError: the student has none.
        """
        raise ConfigError(f"a {self.family} student has no features to tell environments apart by")

    def cast(self, dtype: torch.dtype) -> "Student":
        """Parameters and buffers in ``dtype``; reference energies and the cutoff stay float64."""
        for module in self.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None and tensor.is_floating_point() and name not in KEPT_FLOAT64:
                        tensor.data = tensor.data.to(dtype)
        return self

    def species_idx(self, graph: Graph) -> Tensor:
        """Index (n_atoms,) into ``species`` of each atom.

        Raises:
            UnknownElementError: an element the student was not made for.
        """
        numbers = graph.atomic_numbers
        index = self.index_of_number[numbers.clamp(0, len(self.index_of_number) - 1)]
        if ((index < 0) | (numbers < 1) | (numbers >= len(self.index_of_number))).any():
            check_species(numbers.tolist(), self.species)
        return index


KEPT_FLOAT64 = {"reference_energies", "cutoff_radius"}


class TrainedStudent(Student):
    """A student whose learned part stands on reference energies and a short-range repulsion.

    ``embeddings`` names the parameters of which each row belongs to an element.
    """

    embeddings: tuple[str, ...] = ()

    def __init__(self, species: tuple[int, ...], cutoff: float):
        super().__init__(species, cutoff)
        self.baseline = Baseline(self.species, self.cutoff)

    def calibrate(self, graphs: list[Graph]) -> None:
        """Set scales that come from the training structures rather than from gradients; none by default."""

    @abstractmethod
    def interaction(self, graph: Graph, species_idx: Tensor, distance: Tensor) -> Tensor:
        """The learned part of the atomic energies (n_centers,) in eV."""

    def forward(self, graph: Graph) -> Tensor:
        species_idx = self.species_idx(graph)
        distance = torch.linalg.vector_norm(graph.edge_vectors, dim=1)
        baseline = self.baseline(graph, species_idx, distance)
        return baseline + self.interaction(graph, species_idx, distance).double()


def check_species(atomic_numbers, species: tuple[int, ...]) -> None:
    """Refuse atoms a student was not made for.

    Raises:
        UnknownElementError: naming the atom, its element and the elements that are known.
    """
    if set(atomic_numbers) <= set(species):
        return
    for atom, number in enumerate(atomic_numbers):
        if number in species:
            continue
        known = " ".join(chemical_symbols[k] for k in species)
        if not 1 <= number < len(chemical_symbols):
            raise UnknownElementError(f"atom {atom} has the invalid atomic number {number}")
        raise UnknownElementError(
            f"atom {atom} is {chemical_symbols[number]}, but this student knows only: {known}"
        )
