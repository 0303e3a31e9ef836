# SPDX-License-Identifier: MIT
"""Weight blocks: the tensors of a student as one flat piece of memory that any program can read.

Little-endian throughout. A header of 48 bytes: ``MLFFDBLK``, format (u32), number of entries (u32), family
(16 bytes), size of all in bytes (u64), CRC-32 of what follows the header (u32), 4 bytes unused. Then 80 bytes
an entry: name (64 bytes), offset in bytes from the start (u64), number of values (u64). Then the values, all
float64, each array at a multiple of 64 bytes. Names and row-major order are those of the state dict; the
numbers of the architecture are arrays named ``architecture.channels`` and so on. Arrays of other names mean
nothing to the kernels; those named ``guard.shortest`` and so on are the limits of mlffd/domain.py, for
programs that ask mlffd.h for them, and so is ``verdict``: what the fidelity report said of the student when
the block was written, one byte of UTF-8 a value.
"""

import struct
import zlib
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from mlffd.students.student import Student

MAGIC = b"MLFFDBLK"
FORMAT = 1
HEADER = struct.Struct("<8sII16sQII")
ENTRY = struct.Struct("<64sQQ")
ALIGNMENT = 64
VERDICT = "verdict"


def weight_block(student: Student, others: Mapping[str, np.ndarray] = MappingProxyType({})) -> bytes:
    """The block of a student, for ``mlffd_create`` of mlffd/kernels/cpu/mlffd.h; ``others`` go in as well."""
    arrays = numbers_of(student) | {name: np.ravel(array).astype("<f8") for name, array in others.items()}
    offset = aligned(HEADER.size + ENTRY.size * len(arrays))
    entries, values = b"", b""
    for name, array in arrays.items():
        if len(name.encode()) > 63:
            raise ValueError(f"the name {name} is too long for a weight block")
        entries += ENTRY.pack(name.encode(), offset + len(values), array.size)
        values += array.tobytes()
        values += bytes(aligned(len(values)) - len(values))
    content = entries + bytes(offset - HEADER.size - len(entries)) + values
    size = HEADER.size + len(content)
    family = student.family.encode()
    return HEADER.pack(MAGIC, FORMAT, len(arrays), family, size, zlib.crc32(content), 0) + content


def numbers_of(student: Student) -> dict[str, np.ndarray]:
    """Tensors and architecture of a student as flat float64 arrays."""
    named = {name: tensor.detach().cpu().numpy() for name, tensor in student.state_dict().items()}
    sizes = {name: value for name, value in student.architecture.items() if name not in ("family", "species")}
    named |= {f"architecture.{name}": np.array(value) for name, value in sizes.items()}
    return {name: np.ascontiguousarray(array, dtype="<f8").ravel() for name, array in named.items()}


def aligned(n_bytes: int) -> int:
    """``n_bytes`` rounded up."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT
