# SPDX-License-Identifier: MIT
"""The client's half of the i-PI socket protocol, without a socket: bytes in, bytes out.

Everything i-PI-shaped ends here. On the wire: 12-byte headers, int32 and float64, Bohr and Hartree, cells
whose *columns* are lattice vectors. In the classes below: eV and Å, cells whose *rows* are lattice vectors.

A server that was told to send batches (``<batch_size>``) announces the number in its INIT string and from
then on always sends that many structures, repeating the last one to fill up.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from mlffd.errors import MlffdError
from mlffd.units import BOHR, HARTREE

HEADER_LENGTH = 12
LONGEST_INIT = 1 << 20  # bytes; i-PI's own are a few dozen, so more means that we lost the thread

ONE_SIZE_A_BATCH = (
    "i-PI cannot mix systems of different sizes in one batch: give each system an <ffsocket> of its own, "
    "and the driver a -u for each"
)

SHARED_MEMORY = b"ipi_shm_"  # the names that mode='shm' sends after two integers, in place of structures


class ProtocolError(MlffdError):
    """The server sent something that the protocol does not allow, or not for this system."""

    exit_status = 5


def header(name: str) -> bytes:
    """The name as it travels: upper case, padded to 12 bytes."""
    return name.upper().ljust(HEADER_LENGTH).encode("ascii")


@dataclass(frozen=True)
class Request:
    """The structures that a server wants evaluated; at least one, all with the same atoms."""

    cells: np.ndarray  # (n_structures, 3, 3) Å, rows are lattice vectors
    positions: np.ndarray  # (n_structures, n_atoms, 3) Å, not wrapped

    @classmethod
    def from_ipi(cls, cells: np.ndarray, positions: np.ndarray) -> "Request":
        """From the same shapes as i-PI has them: in Bohr, the columns of a cell its lattice vectors."""
        return cls(cells=cells.transpose(0, 2, 1) * BOHR, positions=positions * BOHR)


@dataclass(frozen=True)
class Answer:
    """The results for a request, in its order."""

    energies: np.ndarray  # (n_structures,) eV
    forces: np.ndarray  # (n_structures, n_atoms, 3) eV/Å
    virials: np.ndarray  # (n_structures, 3, 3) eV, -dE/dstrain
    extras: Sequence[str] = ()  # one string a structure, JSON without a key "raw"; or none at all

    def for_ipi(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Energies (Hartree), forces (Hartree/Bohr) and virials (Hartree), in the same shapes, float64."""
        return (
            np.asarray(self.energies, np.float64) / HARTREE,
            np.asarray(self.forces, np.float64) * (BOHR / HARTREE),
            np.asarray(self.virials, np.float64).transpose(0, 2, 1) / HARTREE,
        )


def check_atom_count(n_atoms: int, atom_counts: Collection[int]) -> None:
    """ProtocolError unless structures may have so many atoms."""
    if n_atoms not in atom_counts:
        ours = " or ".join(str(count) for count in sorted(atom_counts))
        raise ProtocolError(
            f"the server sends structures of {n_atoms} atoms, the template has {ours}: "
            "start the driver with the structure that the i-PI input starts from"
        )


class Session:
    """One conversation with a server.

    ``feed`` takes bytes as they come, ``advance`` reads the messages among them and returns what to send.
    It stops at structures: they wait in ``request`` until ``answer`` is called, and what the server asks
    meanwhile is answered afterwards, since i-PI hangs on a READY from a busy client.
    """

    def __init__(self, atom_counts: Collection[int]):
        """``atom_counts``: the numbers of atoms that structures may have."""
        self.atom_counts = atom_counts
        self.batch_size = 1
        self.parameters: dict[str, str] = {}  # what INIT brought besides the batch size
        self.greeted = False  # the first STATUS has been answered
        self.initialized = False
        self.finished = False  # EXIT has arrived
        self.request: Request | None = None
        self.on_message: Callable[[str], None] = lambda name: None
        self._reply: bytes | None = None
        self._buffer = bytearray()
        self._handlers = {
            header("STATUS"): self._on_status,
            header("INIT"): self._on_init,
            header("POSDATA"): self._on_structures,
            header("GETFORCE"): self._on_getforce,
            header("EXIT"): self._on_exit,
        }

    @property
    def mid_message(self) -> bool:
        """Whether a part of a message has arrived and its end has not."""
        return self.request is None and len(self._buffer) > 0

    @property
    def awaits_answer(self) -> bool:
        """Whether the server has asked for the forces of ``request``: until they come it sends no more."""
        return self.request is not None and self._buffer == header("GETFORCE")

    def feed(self, chunk: bytes | memoryview) -> None:
        """Takes bytes from the server."""
        self._buffer += chunk

    def advance(self) -> bytes:
        """Reads complete messages up to the next request or the last byte; returns what to send.

        Raises ProtocolError at an unknown header, an impossible length or a wrong number of atoms, as soon
        as it can be known.
        """
        replies = bytearray()
        while self.request is None and not self.finished:
            message = self._complete_message()
            if message is None:
                break
            name, body = message[:HEADER_LENGTH], message[HEADER_LENGTH:]
            self.on_message(f"{name.decode().rstrip()}, {len(body)} bytes")
            replies += self._handlers[name](body)
        return bytes(replies)

    def answer(self, answer: Answer) -> None:
        """Hands in the results of ``request``; they leave when the server asks for them."""
        self._reply = encode_answer(answer)
        self.request = None

    def _complete_message(self) -> bytes | None:
        length = self._message_length()
        if length is None or len(self._buffer) < length:
            return None
        message = bytes(self._buffer[:length])
        del self._buffer[:length]
        return message

    def _message_length(self) -> int | None:
        """Bytes of the message at the start of the buffer, or None where more is needed to know."""
        if len(self._buffer) < HEADER_LENGTH:
            return None
        name = bytes(self._buffer[:HEADER_LENGTH])
        if name not in self._handlers:
            raise ProtocolError(self._not_a_header(name))
        if name == header("INIT"):
            return self._init_length()
        if name == header("POSDATA"):
            return self._structures_length()
        return HEADER_LENGTH

    def _not_a_header(self, name: bytes) -> str:
        if self.batch_size > 1:
            return f"the server sent {name!r} in place of a header; {ONE_SIZE_A_BATCH}"
        return f"the server sent {name!r}, which is no i-PI header: is this an i-PI server?"

    def why_unfinished(self) -> str:
        """What a message may lack that has begun and does not go on."""
        if self.batch_size > 1 and self._buffer.endswith(header("GETFORCE")):
            return ONE_SIZE_A_BATCH
        return f"{len(self._buffer)} bytes of it have arrived"

    def _int32(self, offset: int) -> int | None:
        field = self._buffer[offset : offset + 4]
        return int(np.frombuffer(field, np.int32)[0]) if len(field) == 4 else None

    def _init_length(self) -> int | None:
        characters = self._int32(HEADER_LENGTH + 4)
        if characters is None:
            return None
        if not 0 <= characters <= LONGEST_INIT:
            raise ProtocolError(f"the server announced an INIT string of {characters} bytes")
        return HEADER_LENGTH + 8 + characters

    def _structures_length(self) -> int | None:
        if self._buffer[20 : 20 + len(SHARED_MEMORY)] == SHARED_MEMORY:
            raise ProtocolError(
                "the server keeps its structures in shared memory; use mode='unix', not 'shm'"
            )
        # one: h, h^-1, atom count, positions; batch: atom count, all h and h^-1, all positions
        n_atoms = self._int32(HEADER_LENGTH + (144 if self.batch_size == 1 else 0))
        if n_atoms is None:
            return None
        check_atom_count(n_atoms, self.atom_counts)
        return HEADER_LENGTH + 4 + self.batch_size * (144 + 24 * n_atoms)

    def _on_status(self, body: bytes) -> bytes:
        self.greeted = True
        if not self.initialized:
            return header("NEEDINIT")
        return header("READY") if self._reply is None else header("HAVEDATA")

    def _on_init(self, body: bytes) -> bytes:
        self.parameters = parse_parameters(body[8:].decode("utf-8", errors="replace"))
        self.batch_size = batch_size_in(self.parameters.pop("batch_size", "1"))
        self.initialized = True
        self.on_message(f"batches of {self.batch_size}; parameters {self.parameters}")
        return b""

    def _on_structures(self, body: bytes) -> bytes:
        self.request = decode_structures(body, self.batch_size)
        return b""

    def _on_getforce(self, body: bytes) -> bytes:
        if self._reply is None:
            raise ProtocolError("the server asked for forces before it sent a structure")
        reply, self._reply = self._reply, None
        return reply

    def _on_exit(self, body: bytes) -> bytes:
        self.finished = True
        return b""


def parse_parameters(init_string: str) -> dict[str, str]:
    """The parameters in an INIT string such as ``" timestep : 0.25 , beads : 32 , , batch_size:32"``."""
    fields = (field.partition(":") for field in init_string.split(","))
    return {key.strip(): value.strip() for key, colon, value in fields if colon}


def batch_size_in(text: str) -> int:
    """The number of structures in every message; ProtocolError unless at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise ProtocolError(f"the server announced batch_size:{text}")
    return int(text)


def decode_structures(body: bytes, batch_size: int) -> Request:
    """The body of a POSDATA message, of exactly the right length, as structures in Å."""
    if batch_size == 1:
        body = body[144:148] + body[:144] + body[148:]  # the layout of a batch of one
    n_atoms = int(np.frombuffer(body, np.int32, count=1)[0])
    columns = np.frombuffer(body, np.float64, count=18 * batch_size, offset=4).reshape(batch_size, 2, 3, 3)
    positions = np.frombuffer(body, np.float64, offset=4 + 144 * batch_size)
    return Request.from_ipi(columns[:, 0], positions.reshape(batch_size, n_atoms, 3))


def encode_answer(answer: Answer) -> bytes:
    """FORCEREADY with its results, in Hartree and Hartree/Bohr. One structure is a batch of one."""
    n_structures, n_atoms, _ = answer.forces.shape
    energies, forces, virials = answer.for_ipi()
    extras = [text.encode() for text in answer.extras or [""] * n_structures]
    return b"".join(
        [
            header("FORCEREADY"),
            energies.tobytes(),
            np.int32(n_atoms).tobytes(),
            forces.tobytes(),
            virials.tobytes(),
            *(np.int32(len(text)).tobytes() + text for text in extras),
        ]
    )
