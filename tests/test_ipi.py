# SPDX-License-Identifier: MIT
"""The loop of ``mlffd-driver`` against the server's half of i-PI itself, over a pair of sockets."""

import os
import socket
import threading
import time

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.lj import LennardJones
from ase.io import read
from ipi_evaluators import Recorder, Spoiled, argon, from_calculator, lennard_jones, message_stream
from ipi_server import TIME_LIMIT, Talk, ask, ask_batch, in_ev, ipi_request

from mlffd.drivers.ipi import loop
from mlffd.drivers.ipi.evaluator import DUMP, Evaluator, NoAnswer
from mlffd.drivers.ipi.loop import Address, Connection, ServerGone, close, connect, serve
from mlffd.drivers.ipi.protocol import ProtocolError, Session, header
from mlffd.errors import StructureError


@pytest.fixture
def talk(tmp_path, monkeypatch):
    """A factory of talks, all ended in the teardown."""
    monkeypatch.chdir(tmp_path)  # for dumps
    monkeypatch.setattr(loop, "FAREWELL", 0.3)
    talks = []

    def start(*args, **kwargs):
        talks.append(Talk(*args, **kwargs))
        return talks[-1]

    yield start
    for one in talks:
        one.close()


def assert_is_ase(result, atoms: Atoms):
    """The result is what ASE's calculator says of the structure."""
    reference = atoms.copy()
    reference.calc = lennard_jones()
    energy, forces, virial = result
    assert energy == pytest.approx(reference.get_potential_energy(), rel=1e-12)
    np.testing.assert_allclose(forces, reference.get_forces(), atol=1e-12)
    stress = -virial / reference.get_volume()
    np.testing.assert_allclose(stress, reference.get_stress(voigt=False), atol=1e-13)


def test_one_structure_after_the_other(talk):
    session = talk(argon(), from_calculator(lennard_jones()))
    for seed in range(3):
        atoms = argon(seed)
        assert_is_ase(ask(session.servers[0], atoms), atoms)
    assert session.evaluator.tally.structures == 3


def test_the_slow_exchange_of_older_servers(talk):
    """STATUS between POSDATA and GETFORCE, as i-PI < 3.2 and consolidate_messages=False have it."""
    session = talk(argon(), from_calculator(lennard_jones()))
    for seed in range(2):
        request = ipi_request(argon(seed))
        session.servers[0].dispatch(request)
        assert request["status"] == "Done"
        assert_is_ase(in_ev(request["result"]), argon(seed))


@pytest.mark.parametrize("n_structures", [1, 3, 5])
def test_batch_evaluates_no_repeats(talk, n_structures):
    session = talk(argon(), from_calculator(lennard_jones()), batch_size=5)
    structures = [argon(seed) for seed in range(n_structures)]
    for result, atoms in zip(ask_batch(session.servers[0], structures), structures):
        assert_is_ase(result, atoms)
    assert [len(call) for call in session.recorder.calls] == [n_structures]
    assert session.evaluator.tally.repeats == 5 - n_structures


def test_requests_of_two_connections_are_evaluated_together():
    pairs = [socket.socketpair() for _ in range(2)]
    for seed, (_, server) in enumerate(pairs):
        server.sendall(message_stream([argon(seed)]))
    recorder = Recorder(from_calculator(lennard_jones()))
    connections = [Connection(ours, Session({4})) for ours, _ in pairs]
    serve(connections, Evaluator(argon(), recorder))
    assert [len(call) for call in recorder.calls] == [2]
    for connection, (_, server) in zip(connections, pairs):
        server.close()
        close([connection])


def test_virial_is_minus_the_strain_derivative_in_ipi_coordinates(talk):
    """i-PI strains columns: h -> (1 + strain) h, q -> (1 + strain) q."""
    smooth = LennardJones(sigma=3.4, epsilon=0.0104, rc=6.0, ro=4.5, smooth=True)
    session = talk(argon(), from_calculator(smooth))
    atoms = argon(4)
    _, _, virial = ask(session.servers[0], atoms)
    step = 1e-5
    numerical = np.zeros((3, 3))
    for a, b in np.ndindex(3, 3):
        energies = []
        for sign in (1, -1):
            deformation = np.eye(3)
            deformation[a, b] += sign * step
            strained = atoms.copy()
            strained.cell = (deformation @ atoms.cell.array.T).T
            strained.positions = (deformation @ atoms.positions.T).T
            energies.append(ask(session.servers[0], strained)[0])
        numerical[a, b] = -(energies[0] - energies[1]) / (2 * step)
    assert abs(virial[0, 1]) > 0.01 < abs(virial[1, 2])  # shear that a wrong transposition would show
    np.testing.assert_allclose(virial, numerical, rtol=1e-5, atol=1e-7)


def test_positions_are_wrapped_before_evaluation(talk):
    session = talk(argon(), from_calculator(lennard_jones()))
    atoms = argon(2)
    far = atoms.copy()
    far.positions += np.array([[7, -3, 2], [0, 0, 0], [-1, 0, 40], [1000, 0, 0]]) @ atoms.cell.array
    forces = ask(session.servers[0], far)[1]
    np.testing.assert_allclose(forces, ask(session.servers[0], atoms)[1], atol=1e-9)
    seen = session.recorder.calls[0][0].get_scaled_positions(wrap=False)
    assert seen.min() > -1e-9
    assert seen.max() < 1 + 1e-9


def test_molecules_are_neither_wrapped_nor_given_a_cell(talk):
    pair = Atoms("Ar2", [[0, 0, 0], [0, 0, 3.7]])
    session = talk(pair, from_calculator(lennard_jones()))
    moved = pair.copy()
    moved.positions += 50.0
    moved.cell = [10, 10, 10]  # i-PI always has a box
    ask(session.servers[0], moved)
    seen = session.recorder.calls[0][0]
    np.testing.assert_allclose(seen.positions, moved.positions, rtol=1e-14)
    assert not seen.pbc.any()
    assert seen.cell.rank == 0


@pytest.mark.parametrize("how", ["nan", "refuse"])
def test_nothing_is_sent_when_the_student_has_no_answer(talk, how):
    atoms = argon(1)
    session = talk(argon(), Spoiled(from_calculator(lennard_jones()), good_calls=1, how=how), batch_size=2)
    ask_batch(session.servers[0], [atoms, argon(2)])
    requests = [ipi_request(argon(3)), ipi_request(argon(4))]
    assert session.servers[0].dispatch_send_batch(requests)
    assert not session.servers[0].dispatch_recv_batch(requests)  # i-PI's quiet "disconnected", no reset
    session.join()
    assert isinstance(session.error, NoAnswer)
    dumped = read(DUMP, index=":")
    np.testing.assert_allclose(dumped[-1].get_distances(0, [1, 2, 3], mic=True),
                               argon(4).get_distances(0, [1, 2, 3], mic=True), atol=1e-7)  # fmt: skip


def test_leaving_does_not_reset_the_connection(talk):
    """i-PI's poll thread dies of a reset, and its run then hangs."""

    def fail_late(structures):
        session.servers[0].send_msg("status")  # arrives during the evaluation and is never answered
        raise StructureError("atoms too close")

    session = talk(argon(), fail_late)
    session.servers[0].dispatch_send(ipi_request(argon()))
    assert session.servers[0].recv(100) == b""
    session.join()


def test_exit_ends_the_loop(talk):
    session = talk(argon(), from_calculator(lennard_jones()))
    ask(session.servers[0], argon())
    session.servers[0].shutdown()  # i-PI's goodbye: EXIT, then the end of the stream
    session.join()
    assert session.error is None


@pytest.mark.parametrize("busy", [False, True])
def test_a_server_that_dies_is_noticed(talk, busy):
    session = talk(argon(), from_calculator(lennard_jones()))
    ask(session.servers[0], argon())
    if busy:
        session.servers[0].dispatch_send(ipi_request(argon(1)))
    session.servers[0].close()
    session.join()
    assert isinstance(session.error, ServerGone)


@pytest.mark.parametrize(
    ("stream", "complaint"),
    [
        (b"GET / HTTP/1.1\r\n", "no i-PI header"),
        (header("GETFORCE"), "before it sent a structure"),
        (header("INIT") + np.array([0, -5], np.int32).tobytes(), "-5 bytes"),
        (header("INIT") + np.array([0, 12], np.int32).tobytes() + b"batch_size:0", "batch_size:0"),
        (header("POSDATA") + bytes(144) + np.int32(9).tobytes(), "9 atoms, the template has 4"),
        (header("POSDATA") + np.array([4, 17], np.int32).tobytes() + b"ipi_shm_1234_5_pos", "not 'shm'"),
    ],
    ids=["header", "order", "length", "batch", "atoms", "shm"],
)
def test_nonsense_is_refused_in_one_line(talk, stream, complaint):
    session = talk(argon(), from_calculator(lennard_jones()))
    session.servers[0].sendall(stream)
    session.join()
    assert isinstance(session.error, ProtocolError)
    assert complaint in str(session.error)
    assert "\n" not in str(session.error)
    assert session.servers[0].recv(100) == b""


def test_a_message_that_never_ends_is_given_up(talk, monkeypatch):
    monkeypatch.setattr(loop, "PATIENCE", 0.2)
    session = talk(argon(), from_calculator(lennard_jones()))
    session.servers[0].sendall(header("POSDATA") + bytes(20))
    session.join()
    assert "middle of a message" in str(session.error)


def test_late_server_is_waited_for(tmp_path):
    address = Address(path=str(tmp_path / "late"))
    listener = socket.socket(socket.AF_UNIX)

    def listen():
        time.sleep(0.4)
        listener.bind(address.path)
        listener.listen()

    thread = threading.Thread(target=listen)
    thread.start()
    connect(address, TIME_LIMIT).close()
    thread.join()
    listener.close()
    with pytest.raises(ServerGone, match="left by a killed i-pi"):
        connect(address, 0.0)
    os.unlink(address.path)
    with pytest.raises(ServerGone, match="no server at"):
        connect(address, 0.2)


def test_tcp_is_without_delay(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sock = connect(Address(host="127.0.0.1", port=listener.getsockname()[1]), 5.0)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        sock.close()


def test_ase_as_the_server(tmp_path):
    """A second server that was written by others. It leaves without EXIT."""
    from ase.calculators.socketio import SocketIOCalculator

    atoms, name = argon(3), f"mlffd_{os.getpid()}"
    gone = []

    def client():
        sock = connect(Address(path=f"/tmp/ipi_{name}"), TIME_LIMIT)
        connection = Connection(sock, Session({len(atoms)}))
        try:
            serve([connection], Evaluator(atoms, from_calculator(lennard_jones())))
        except ServerGone as error:
            gone.append(error)
        close([connection])

    thread = threading.Thread(target=client, daemon=True)
    thread.start()
    with SocketIOCalculator(unixsocket=name, timeout=TIME_LIMIT) as calculator:
        atoms.calc = calculator
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        stress = atoms.get_stress(voigt=False)
    thread.join(TIME_LIMIT)
    assert gone
    assert_is_ase((energy, forces, -stress * atoms.get_volume()), argon(3))
