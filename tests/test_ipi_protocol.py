# SPDX-License-Identifier: MIT
"""The protocol without a socket, and what surrounds the loop of ``mlffd-driver``: template, report."""

import socket

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from ase.units import Bohr
from ipi_evaluators import argon, message_stream

from mlffd.drivers.ipi import template
from mlffd.drivers.ipi.protocol import Answer, Session, encode_answer, header
from mlffd.drivers.structure_file import read_structure
from mlffd.errors import ConfigError


@pytest.mark.parametrize("piece", [1, 7, 100, 10**6])
def test_messages_may_arrive_in_any_pieces(piece):
    structures = [argon(seed) for seed in range(3)]
    answer = Answer(np.arange(3.0), np.ones((3, 4, 3)), np.ones((3, 3, 3)))
    session, stream, sent = Session({4}), message_stream(structures), b""
    for start in range(0, len(stream), piece):
        session.feed(stream[start : start + piece])
        sent += session.advance()
        if session.request:
            np.testing.assert_allclose(session.request.cells[2], structures[2].cell.array, rtol=1e-14)
            np.testing.assert_allclose(session.request.positions[1], structures[1].positions, rtol=1e-14)
            session.answer(answer)
            sent += session.advance()
    names = ["NEEDINIT", "READY", "HAVEDATA"]
    assert sent == b"".join(map(header, names)) + encode_answer(answer) + header("READY")
    assert session.finished


def test_status_waits_while_busy():
    session = Session({4})
    session.feed(message_stream([argon(), argon(1)]))
    assert session.advance() == header("NEEDINIT") + header("READY")
    assert session.request
    assert session.advance() == b""  # the STATUS that follows stays unanswered


@pytest.mark.parametrize(
    ("sent", "parameters", "batch_size"),
    [
        (" ", {}, 1),
        (" , batch_size:32", {}, 32),
        (" timestep : 0.25 , beads : 32 , , batch_size:32", {"timestep": "0.25", "beads": "32"}, 32),
        (" model : C:/a, b.pt , ", {"model": "C:/a"}, 1),
    ],
)
def test_parameters_of_the_server(sent, parameters, batch_size):
    """The first three are what i-PI sends; it does not escape commas."""
    session, text = Session({4}), sent.encode()
    session.feed(header("STATUS") + header("INIT") + np.array([0, len(text)], np.int32).tobytes() + text)
    session.advance()
    assert (session.parameters, session.batch_size) == (parameters, batch_size)


@pytest.mark.parametrize("n_structures", [1, 2])
def test_extras_arrive(n_structures):
    """Read by i-PI itself; lengths count bytes, not characters."""
    sockets = pytest.importorskip("ipi.interfaces.sockets")
    extras = ['{"Å": [1, 2]}', ""][:n_structures]
    answer = Answer(
        np.zeros(n_structures), np.zeros((n_structures, 4, 3)), np.zeros((n_structures, 3, 3)), extras
    )
    ours, theirs = socket.socketpair()
    with ours, theirs, sockets.Driver(theirs) as server:
        server.settimeout(10)
        server.batch_size = n_structures
        ours.sendall(encode_answer(answer))
        if n_structures == 1:
            results = [server._recv_forces_bulk(4)]
        else:
            results = server._recv_forces_bulk_batch(4, n_structures)
    assert [result[3] for result in results] == [{"Å": [1, 2], "raw": extras[0]}, {}][:n_structures]


IPI_XYZ = "1\n# CELL(abcABC): {0:.5f} {0:.5f} {0:.5f} 90.0 90.0 60.0 {1}\nAr 1.0 2.0 3.0\n"


@pytest.mark.parametrize(("units", "of_positions", "of_cell"), [
    ("positions{angstrom} cell{angstrom}", 1.0, 1.0),
    ("x_centroid{angstrom}  cell{atomic_unit}", 1.0, Bohr),
    ("Step: 0", Bohr, Bohr),
])  # fmt: skip
def test_structure_from_ipi_has_its_cell(tmp_path, units, of_positions, of_cell):
    """For all who read structures; the last frame's, with the units it names. Seen to fail with the first
    frame's cell, and with units looked for under the name of positions."""
    path = tmp_path / "init.xyz"
    path.write_text(IPI_XYZ.format(9.0, units) + IPI_XYZ.format(12.0, units))
    for atoms in (template.read_template(path), read_structure(path)):
        assert atoms.pbc.all()
        np.testing.assert_allclose(atoms.cell.lengths(), 12.0 * of_cell)
        np.testing.assert_allclose(atoms.positions, [np.array([1.0, 2.0, 3.0]) * of_positions])


def test_template_pbc(tmp_path):
    write(tmp_path / "bulk.xyz", argon(), format="extxyz")
    write(tmp_path / "pair.xyz", Atoms("Ar2", np.eye(3)[:2]), format="xyz")
    assert template.read_template(tmp_path / "bulk.xyz").pbc.all()
    assert template.read_template(tmp_path / "bulk.xyz", "xy").pbc.tolist() == [True, True, False]
    assert not template.read_template(tmp_path / "bulk.xyz", "none").pbc.any()
    assert not template.read_template(tmp_path / "pair.xyz").pbc.any()
    with pytest.raises(ConfigError, match="no cell of three vectors"):
        template.read_template(tmp_path / "pair.xyz", "xyz")


def test_several_templates(tmp_path):
    """Two that an atom count cannot tell apart are refused, the same one twice is not."""
    krypton = Atoms(np.full(4, 36), argon().positions, cell=argon().cell, pbc=True)
    for name, atoms in {"four": argon(), "again": argon(1), "three": argon()[:3], "other": krypton}.items():
        write(tmp_path / f"{name}.xyz", atoms, format="extxyz")

    def read(*names):
        return template.read_templates([tmp_path / f"{name}.xyz" for name in names])

    assert [len(atoms) for atoms in read("four", "three", "again")] == [4, 3]
    with pytest.raises(ConfigError, match=r"four.xyz and .*other.xyz have 4 atoms each"):
        read("four", "other")


def test_template_that_is_none(tmp_path):
    (tmp_path / "nonsense.xyz").write_text("not a structure\n")
    (tmp_path / "nonsense").write_bytes(bytes(range(256)))
    for name in ("missing.xyz", "nonsense.xyz", "nonsense"):
        with pytest.raises(ConfigError, match=name):
            template.read_template(tmp_path / name)
