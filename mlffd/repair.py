"""Infer a student's architecture from the names and shapes of its tensors."""

import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from mlffd.bundle import (
    FORMAT,
    Bundle,
    complete_metadata,
    load_tensors,
    one_line,
    parse,
    upgrade,
    without_foreign_report,
)
from mlffd.errors import BundleError
from mlffd.students import build_student

# wrappers that other training code leaves in front of the names of parameters
PREFIX = re.compile(r"^(module\.|_orig_mod\.|student\.|model\.)+")
NESTED = ("state_dict", "model_state_dict", "student", "model")


def repair(path: str | Path, species: list[int] | None = None, cutoff: float | None = None) -> Bundle:
    """A bundle from a bare state dict, or from a bundle whose metadata is wrong.

    ``species`` (atomic numbers) and ``cutoff`` (Å) are needed only where the tensors do not tell them.
    Facts in the old metadata that do not concern the architecture are kept, but no report of other weights.

    Raises:
        BundleError: not a file of tensors, or they are not those of a student this mlffd knows.
    """
    tensors, metadata = read_tensors(Path(path))
    tensors = with_identity(tensors, species, cutoff, str(path))
    try:
        student = build_student(infer_architecture(tensors, str(path)))
    except BundleError as error:
        raise BundleError(f"{path}: {one_line(error).removeprefix(f'{path}: ')}") from error
    load_tensors(student, tensors, str(path))
    return without_foreign_report(Bundle(student, complete_metadata(student, metadata)))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors, under plain names, and what metadata can be read.

    Raises:
        BundleError: neither a safetensors file nor a PyTorch file of tensors only.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error
    try:
        tensors = load_safetensors(content)
    except SafetensorError:
        return read_state_dict(path), {}
    return plain_names(tensors, str(path)), old_metadata(content)


def old_metadata(content: bytes) -> dict:
    """Metadata of a bundle's content as far as it makes sense; its architecture is left out."""
    try:
        _, metadata = parse(content, "")
        metadata = upgrade({"format": FORMAT, **metadata})
    except (BundleError, KeyError, TypeError):
        return {}
    return {key: value for key, value in metadata.items() if key != "architecture"}


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a file written by ``torch.save``; nothing in it is executed.

    Raises:
        BundleError: not such a file, or it holds more than tensors.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises anything from EOFError to KeyError
        raise BundleError(
            f"{path} is not a file of tensors only: it is something else, or holds code"
        ) from error
    for key in NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(is_entry(*entry) for entry in content.items()):
        raise BundleError(f"{path} holds no state dict (names and dense tensors)")
    return plain_names(content, str(path))


def is_entry(name, value) -> bool:
    dense = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    return isinstance(name, str) and dense


def plain_names(tensors: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Tensors without the prefixes of wrappers.

    Raises:
        BundleError: two names differ in their prefix only.
    """
    plain = {PREFIX.sub("", name): tensor for name, tensor in tensors.items()}
    if len(plain) != len(tensors):
        raise BundleError(f"{source} holds two students, or one twice: names differ in their prefix only")
    return plain


def with_identity(tensors: dict, species: list[int] | None, cutoff: float | None, source: str) -> dict:
    """Tensors with species and cutoff among them.

    Raises:
        BundleError: the tensors do not tell and nothing was given, or both and they differ.
    """
    given = {
        "species_numbers": None if species is None else torch.tensor(species),
        "cutoff_radius": None if cutoff is None else torch.tensor(cutoff, dtype=torch.float64),
    }
    for (name, value), option in zip(given.items(), ("--species", "--cutoff")):
        if name not in tensors and value is None:
            raise BundleError(f"{source}: the tensors do not tell; give {option}")
        if name in tensors and value is not None and not torch.equal(tensors[name], value):
            raise BundleError(
                f"{source}: its tensors say {tensors[name].tolist()}, which differs from {option}"
            )
        if name not in tensors:
            tensors = {**tensors, name: value}
    return tensors


def infer_architecture(tensors: dict[str, Tensor], source: str) -> dict:
    """The description ``build_student`` needs, read from names and shapes.

    Raises:
        BundleError: the names are those of no known family.
    """
    for evidence, sizes in INFERENCES.items():
        if evidence in tensors:
            try:
                return {**identity(tensors), **sizes(tensors)}
            except KeyError as error:
                raise BundleError(f"{source}: looks like a student but lacks the tensor {error}") from error
            except (ValueError, IndexError, TypeError, RuntimeError, ArithmeticError) as error:
                raise BundleError(f"{source}: looks like a student, but {one_line(error)}") from error
    names = ", ".join(sorted(tensors)[:3])
    raise BundleError(f"{source}: tensors such as {names} belong to no student family that mlffd knows")


def identity(tensors: dict[str, Tensor]) -> dict:
    return {"species": tensors["species_numbers"].tolist(), "cutoff": tensors["cutoff_radius"].item()}


def local_sizes(tensors: dict[str, Tensor]) -> dict:
    n_l, n_density, twice_channels = tensors["networks.0.mixing"].shape
    biases = [name for name in tensors if re.fullmatch(r"networks\.0\.layers\.\d+\.bias", name)]
    sizes = [len(tensors[f"networks.0.layers.{k}.bias"]) for k in range(len(biases))]
    return dict(
        family="local",
        n_radial=n_density // tensors["neighbor_weights"].shape[1],
        l_max=n_l - 1,
        channels=twice_channels // 2,
        hidden=sizes[:-1],
    )


def painn_sizes(tensors: dict[str, Tensor]) -> dict:
    layers = {name.split(".")[1] for name in tensors if name.startswith("messages.")}
    return dict(
        family="painn",
        n_radial=tensors["messages.0.filters.weight"].shape[1],
        features=tensors["embedding.weight"].shape[1],
        layers=len(layers),
    )


def lennard_jones_sizes(tensors: dict[str, Tensor]) -> dict:
    return dict(family="lennard_jones", epsilon=tensors["epsilon"].tolist(), sigma=tensors["sigma"].tolist())


# a tensor that only one family has -> the sizes of that family
INFERENCES = {
    "networks.0.mixing": local_sizes,
    "messages.0.filters.weight": painn_sizes,
    "sigma": lennard_jones_sizes,
}
