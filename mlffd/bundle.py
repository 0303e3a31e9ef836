"""A student bundle: one file of weights (safetensors) and facts about them (JSON), no code inside."""

import hashlib
import json
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from ase.data import atomic_numbers
from safetensors import SafetensorError
from torch import Tensor

from mlffd.domain import limits
from mlffd.errors import BundleError
from mlffd.files import write_atomically
from mlffd.kernels.block import VERDICT, weight_block
from mlffd.students import build_student
from mlffd.students.student import Student
from mlffd.verdict import KEY as REPORT
from mlffd.verdict import carried, sentence

FORMAT = 1
METADATA_KEY = "mlffd"
ZOO = Path(__file__).parent / "zoo"


@dataclass(frozen=True)
class Bundle:
    """A student in float64 and its metadata: ``format``, ``architecture``, ``units``, ``mlffd_version``, and
    where training wrote them ``name``, ``teacher``, ``labels``, ``training``, ``errors``, ``training_domain``
    (see mlffd/domain.py), ``bars``, and from its fidelity report ``fidelity`` (see mlffd/verdict.py)."""

    student: Student
    metadata: dict

    def to_bytes(self) -> bytes:
        """The content of the bundle file."""
        tensors = {name: compact(tensor) for name, tensor in self.student.state_dict().items()}
        return safetensors.torch.save(tensors, {METADATA_KEY: json.dumps(self.metadata, sort_keys=True)})

    @property
    def name(self) -> str:
        """``student`` where nobody named it."""
        return str(self.metadata.get("name", "student"))

    @property
    def weights_sha256(self) -> str:
        """Of names, shapes and values of all tensors, whatever the precision they are held in."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.student.state_dict().items()):
            array = np.ascontiguousarray(tensor.detach().cpu().numpy(), dtype="<f8")
            digest.update(f"{name} {array.shape} ".encode() + array.tobytes())
        return digest.hexdigest()

    @property
    def verdict(self) -> str:
        """One line: the student's name, and what its fidelity report says of it, computed anew."""
        known = self.weights_sha256 if REPORT in self.metadata else ""
        line = f"fidelity of {self.name[:99]}: {sentence(self.metadata, known)}"
        return " ".join("".join(letter if letter.isprintable() else " " for letter in line).split())[:500]

    def with_report(self, judged: dict) -> "Bundle":
        """The bundle carrying a judged report (``mlffd.report.judge``) of these weights.

        Raises:
            BundleError: the report is of other weights.
        """
        reported, here = judged.get("student", {}).get("weights_sha256"), self.weights_sha256
        if reported != here:
            raise BundleError(
                f"the report is of weights {str(reported)[:12]}, this student has {here[:12]}: "
                "run mlffd report for it"
            )
        return replace(self, metadata={**self.metadata, REPORT: carried(judged)})

    def weight_block(self) -> bytes:
        """The student as compiled kernels read it, also without Python: see mlffd/kernels/block.py.

        Raises:
            BundleError: what its metadata says of training makes no sense.
        """
        said = {VERDICT: np.frombuffer(self.verdict.encode(), np.uint8)}
        return weight_block(self.student, limits(self.metadata, self.student.species).arrays() | said)


def compact(tensor: Tensor) -> Tensor:
    """The tensor in float32 where that loses nothing, as with all weights trained in float32."""
    single = tensor.to(torch.float32) if tensor.dtype == torch.float64 else tensor
    return (single if torch.equal(single.to(tensor.dtype), tensor) else tensor).contiguous()


def write_bundle(path: str | Path, student: Student, metadata: dict | None = None) -> Bundle:
    """Write ``student`` and its facts to ``path``, atomically, and return them as a bundle.

    Raises:
        BundleError: a weight is not finite; nothing is written.
    """
    check_finite(student.state_dict(), str(path))
    bundle = without_foreign_report(Bundle(student, complete_metadata(student, metadata or {})))
    write_atomically(Path(path), bundle.to_bytes())
    return bundle


def complete_metadata(student: Student, metadata: dict) -> dict:
    """``metadata`` with the entries every bundle has."""
    facts = dict(
        format=FORMAT,
        architecture=student.architecture,
        units=dict(energy="eV", length="Angstrom"),
        mlffd_version=mlffd_version(),
    )
    return {**metadata, **facts}


def without_foreign_report(bundle: Bundle) -> Bundle:
    """The bundle without a fidelity report of other weights, which says nothing of these."""
    report = bundle.metadata.get(REPORT, {})
    if isinstance(report, dict) and report.get("weights_sha256") == bundle.weights_sha256:
        return bundle
    return replace(bundle, metadata={k: v for k, v in bundle.metadata.items() if k != REPORT})


def mlffd_version() -> str:
    """Version of the installed package, or "unknown" when run from a bare source tree."""
    try:
        return version("mlffd")
    except PackageNotFoundError:
        return "unknown"


def locate_bundle(path_or_name: str | Path) -> Path:
    """The file of a bundle: a bare word such as ``water`` names a student shipped with mlffd.

    Raises:
        BundleError: no such file or shipped student.
    """
    path = Path(path_or_name)
    shipped = ZOO / f"{path.name}.mlffd"
    try:
        if path.is_file():
            return path
        if len(path.parts) == 1 and not path.suffix and shipped.is_file():
            return shipped
    except OSError as error:  # a name too long for the file system
        raise BundleError(f"no student bundle at {path}: {error.strerror}") from error
    names = ", ".join(sorted(file.stem for file in ZOO.glob("*.mlffd"))) or "none"
    raise BundleError(f"no student bundle at {path} (students shipped with mlffd: {names})")


def read_bundle(path_or_name: str | Path) -> Bundle:
    """Read a bundle file, or a shipped student by name. Nothing from the file is executed.

    Raises:
        BundleError: missing, damaged, from a newer mlffd, or its tensors do not fit its architecture.
    """
    path = locate_bundle(path_or_name)
    return read_bundle_bytes(path.read_bytes(), str(path))


def read_bundle_bytes(content: bytes, source: str = "student bundle") -> Bundle:
    """Read a bundle from its file's content; ``source`` names it in errors. Raises as ``read_bundle``."""
    tensors, metadata = parse(content, source)
    metadata = upgrade(metadata, source)
    if "architecture" not in metadata:
        raise BundleError(f"{source}: its metadata has no architecture; try: mlffd repair")
    try:
        student = build_student(metadata["architecture"])
    except (BundleError, TypeError, ValueError, RuntimeError) as error:
        raise BundleError(f"{source}: {one_line(error)}; try: mlffd repair") from error
    load_tensors(student, tensors, source)
    return Bundle(student, metadata)


def parse(content: bytes, source: str) -> tuple[dict[str, Tensor], dict]:
    """Tensors and metadata of a bundle file's content.

    Raises:
        BundleError: not safetensors, or without mlffd's metadata.
    """
    try:
        tensors = safetensors.torch.load(content)
        header_length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + header_length])
    except (SafetensorError, ValueError, RecursionError) as error:
        raise BundleError(f"{source} is damaged or not a student bundle ({one_line(error)})") from error
    try:
        metadata = json.loads(header["__metadata__"][METADATA_KEY])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise BundleError(f"{source} has no mlffd metadata; try: mlffd repair") from error
    if not isinstance(metadata, dict):
        raise BundleError(f"{source}: its metadata is no table; try: mlffd repair")
    return tensors, metadata


def load_tensors(student: Student, tensors: dict[str, Tensor], source: str) -> None:
    """Put ``tensors`` into the student, exactly.

    Raises:
        BundleError: names or shapes differ, or a value is not finite.
    """
    expected = student.state_dict()
    odd = sorted(set(expected) ^ set(tensors))
    odd += [name for name in expected if name in tensors and expected[name].shape != tensors[name].shape]
    if odd:
        raise BundleError(
            f"{source}: tensors do not fit the architecture in its metadata ({', '.join(odd[:3])}"
            f"{', ...' if len(odd) > 3 else ''}); try: mlffd repair"
        )
    check_finite(tensors, source)
    if (
        tuple(tensors["species_numbers"].tolist()) != student.species
        or tensors["cutoff_radius"] != student.cutoff
    ):
        raise BundleError(f"{source}: species or cutoff of metadata and tensors differ; try: mlffd repair")
    student.load_state_dict(tensors)


def check_finite(tensors: dict[str, Tensor], source: str) -> None:
    """Refuse a student that can only answer NaN.

    Raises:
        BundleError: naming the tensor.
    """
    bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise BundleError(f"{source}: {bad[0]} holds values that are not finite; the student is unusable")


def upgrade(metadata: dict, source: str = "student bundle") -> dict:
    """Bring metadata of an older format to the present one, one format number at a time.

    Raises:
        BundleError: no format number, or one newer than this mlffd knows.
    """
    number = metadata.get("format")
    if not isinstance(number, int) or number < 0:
        raise BundleError(f"{source}: metadata has no format number; try: mlffd repair")
    if number > FORMAT:
        raise BundleError(
            f"{source} has bundle format {number}, this mlffd reads up to {FORMAT}: install mlffd "
            f"{metadata.get('mlffd_version', '')} or newer"
        )
    while number < FORMAT:
        try:
            metadata = UPGRADES[number](metadata)
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"{source}: metadata of format {number} lacks {error}; try: mlffd repair"
            ) from error
        number += 1
    return metadata


def from_format_0(metadata: dict) -> dict:
    """Format 0 (before the first release) named the architecture ``model`` and gave chemical symbols."""
    metadata = dict(metadata)
    architecture = dict(metadata.pop("model"))
    architecture["species"] = [atomic_numbers[symbol] for symbol in architecture.pop("elements")]
    return {**metadata, "architecture": architecture, "format": 1}


UPGRADES = {0: from_format_0}


def one_line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
