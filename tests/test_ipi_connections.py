# SPDX-License-Identifier: MIT
"""Several connections, large messages, slow students, one server after the other, signals at any moment."""

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from ase.units import Bohr
from ipi_evaluators import Recorder, argon, harmonic, message_stream
from ipi_server import TIME_LIMIT, Talk, ipi_request, ipi_sockets

from mlffd.drivers.ipi import client, loop
from mlffd.drivers.ipi.evaluator import DUMP, Evaluator
from mlffd.drivers.ipi.loop import Address, Connection, close, connect, serve
from mlffd.drivers.ipi.protocol import ProtocolError, Session, header

N_ATOMS = 12_000  # a message of 288 kB, more than the kernel keeps for a client that does not read


@pytest.fixture
def talk(monkeypatch):
    """A factory of talks, all ended in the teardown."""
    monkeypatch.setattr(loop, "FAREWELL", 0.3)
    talks = []

    def start(*args, **kwargs):
        talks.append(Talk(*args, **kwargs))
        for server in talks[-1].servers:
            server.get_status()  # i-PI's handshake
        return talks[-1]

    yield start
    for one in talks:
        one.close()


def crowd(seed: int = 0) -> Atoms:
    """Many atoms, not periodic."""
    return Atoms(np.full(N_ATOMS, 18), np.random.default_rng(seed).uniform(0, 100, (N_ATOMS, 3)))


def requests(n: int, structure=argon) -> list:
    """As i-PI's force field queues them; a molecule gets a box, as everything in i-PI has one."""
    structures = [structure(seed) for seed in range(n)]
    for atoms in structures:
        if not atoms.cell.rank:
            atoms.cell = np.eye(3) * 200.0
    return [ipi_request(atoms, seed) for seed, atoms in enumerate(structures)]


def receive(servers, wave) -> None:
    """The answers, one after the other as i-PI takes them, within the time limit."""
    thread = threading.Thread(target=lambda: [s.dispatch_recv(r) for s, r in zip(servers, wave)], daemon=True)
    thread.start()
    thread.join(TIME_LIMIT)
    assert not thread.is_alive()


class Slow:
    """A harmonic force that is answered when the test says so."""

    def __init__(self):
        self.begun, self.may_end = threading.Event(), threading.Event()

    def __call__(self, structures):
        self.begun.set()
        assert self.may_end.wait(TIME_LIMIT)
        return harmonic(1e-6)(structures)


def test_a_large_message_is_taken_while_the_student_computes(talk):
    """i-PI gives up a client that does not take a message within 0.1 s, and that run is over. Seen to fail
    with the evaluation in the thread of the loop."""
    slow = Slow()
    session = talk(crowd(), slow, n_connections=2)
    first, second = requests(2, crowd)
    assert session.servers[0].dispatch_send(first)
    assert slow.begun.wait(TIME_LIMIT)
    session.servers[1].settimeout(ipi_sockets.TIMEOUT)
    assert session.servers[1].dispatch_send(second)
    slow.may_end.set()
    assert session.servers[0].dispatch_recv(first)
    assert session.servers[1].dispatch_recv(second)


def test_a_large_answer_waits_for_no_other(talk):
    """i-PI reads one answer, asks that client for its status, and only then reads the next answer. Seen to
    hang for 30 s with a sendall that waits."""
    session = talk(crowd(), harmonic(1e-6), n_connections=3)
    wave = requests(3, crowd)
    for server, request in zip(session.servers, wave):
        assert server.dispatch_send(request)
    receive(session.servers, wave)
    for request in wave:
        forces = request["result"][1]
        np.testing.assert_allclose(forces, -1e-6 * request["pos"], rtol=1e-12)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_wave_is_one_evaluation(talk, monkeypatch, batch_size):
    """Seen to fail without the moment in which the rest of a wave is waited for."""
    monkeypatch.setattr(loop, "GATHERING", 0.3)
    session = talk(argon(), harmonic(0.01), batch_size, n_connections=4)
    everything = requests(3 * batch_size)
    for server, k in zip(session.servers, range(0, len(everything), batch_size)):  # the fourth gets nothing
        part = everything[k : k + batch_size]
        assert server.dispatch_send_batch(part) if batch_size > 1 else server.dispatch_send(part[0])
        time.sleep(0.02)
    for server, k in zip(session.servers, range(0, len(everything), batch_size)):
        part = everything[k : k + batch_size]
        assert server.dispatch_recv_batch(part) if batch_size > 1 else server.dispatch_recv(part[0])
    assert [len(call) for call in session.recorder.calls] == [3 * batch_size]


def test_all_that_is_awaited_is_evaluated_at_once(talk, monkeypatch):
    """When every connection asks, nothing more can come."""
    monkeypatch.setattr(loop, "GATHERING", 100.0)
    session = talk(argon(), harmonic(0.01), n_connections=2)
    wave = requests(2)
    for server, request in zip(session.servers, wave):
        assert server.dispatch_send(request)
    receive(session.servers, wave)
    assert [len(call) for call in session.recorder.calls] == [2]


def test_connections_are_opened_one_at_a_time(tmp_path, monkeypatch):
    """i-PI answers nobody else between its STATUS and the reply, and has a short queue. Seen to hang where
    the reply to the last connection's STATUS waited for other news."""
    monkeypatch.setattr(loop, "FAREWELL", 0.3)
    address = Address(path=str(tmp_path / "one"))
    recorder = Recorder(harmonic(0.01))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address.path)
        listener.listen(4)
        listener.settimeout(TIME_LIMIT)

        three = client.Client(Evaluator(argon(), recorder), [address], TIME_LIMIT, 3, False)
        thread = threading.Thread(target=three.serve, daemon=True)
        thread.start()
        servers = []
        for _ in range(3):
            servers.append(ipi_sockets.Driver(listener.accept()[0]))
            servers[-1].settimeout(TIME_LIMIT)
            listener.settimeout(0.3)
            with pytest.raises(TimeoutError):  # no other one before this one's handshake
                listener.accept()
            listener.settimeout(TIME_LIMIT)
            servers[-1].send_msg("status")
            assert servers[-1].recv(12) == b"NEEDINIT    "
        wave = requests(3)
        for server, request in zip(servers, wave):
            assert server.dispatch_send(request)
        for server, request in zip(servers, wave):
            assert server.dispatch_recv(request)
            server.shutdown()
        thread.join(TIME_LIMIT)
        assert not thread.is_alive()
    assert sum(map(len, recorder.calls)) == 3


def test_a_connection_that_the_server_never_took_is_forgotten():
    """As when i-PI ends with one more client in its queue. Seen to end in ServerGone."""
    taken, untaken = socket.socketpair(), socket.socketpair()
    untaken[1].close()
    taken[1].sendall(message_stream([argon()]))
    connections = [Connection(pair[0], Session({4})) for pair in (taken, untaken)]
    serve(connections, Evaluator(argon(), harmonic(0.01)))
    assert connections[0].session.finished
    taken[1].close()
    close(connections)


def test_the_connection_after_one_that_the_server_dropped(tmp_path, monkeypatch):
    """It gets the same file descriptor. Seen to wait for ever with the first one's still watched."""
    monkeypatch.setattr(loop, "FAREWELL", 0.3)
    address = Address(path=str(tmp_path / "one"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address.path)
        listener.listen(4)
        listener.settimeout(TIME_LIMIT)
        two = client.Client(Evaluator(argon(), harmonic(0.01)), [address], TIME_LIMIT, 2, False)
        thread = threading.Thread(target=two.serve, daemon=True)
        thread.start()
        servers = []
        for is_taken in (True, False, True):
            servers.append(ipi_sockets.Driver(listener.accept()[0]))
            servers[-1].settimeout(TIME_LIMIT)
            if not is_taken:
                servers.pop().close()
                continue
            servers[-1].send_msg("status")
            assert servers[-1].recv(12) == b"NEEDINIT    "
        for server in servers:
            server.shutdown()
        thread.join(TIME_LIMIT)
        assert not thread.is_alive()


def test_silence_is_told_once(monkeypatch, capsys):
    """With matching='lock' and too few connections i-PI never begins, and our side seems to hang."""
    monkeypatch.setattr(loop, "SILENCE", 0.1)
    ours, theirs = socket.socketpair()
    thread = threading.Timer(0.5, theirs.sendall, [header("EXIT")])
    thread.start()
    serve([Connection(ours, Session({4}))], Evaluator(argon(), harmonic(0.1)))
    thread.join()
    assert capsys.readouterr().err.count("no word from the server") == 1
    ours.close()
    theirs.close()


def test_servers_that_read_nothing_are_left_together(monkeypatch):
    """As where i-PI is stopped; one that does read gets all. Seen to fail: a farewell after the other."""
    monkeypatch.setattr(loop, "FAREWELL", 1.0)
    pairs = [socket.socketpair() for _ in range(20)]
    connections = [Connection(ours, Session({4})) for ours, _ in pairs]
    for connection in connections:
        connection._outgoing += bytes(10**6)
        connection.send()
    thread = threading.Thread(target=close, args=(connections,), daemon=True)
    thread.start()
    last, received = pairs[-1][1], 0
    last.settimeout(TIME_LIMIT)
    while chunk := last.recv(1 << 20):
        received += len(chunk)
    thread.join(TIME_LIMIT)
    assert not thread.is_alive()
    assert received == 10**6
    for _, theirs in pairs:
        theirs.close()


def test_systems_of_different_sizes_in_one_batch(monkeypatch):
    """Too short or too long for as many structures of the first one's size: told in a line, not answered."""
    monkeypatch.setattr(loop, "PATIENCE", 0.2)
    monkeypatch.setattr(loop, "FAREWELL", 0.1)
    stream = message_stream([argon(), argon(1)])
    end = stream.index(b"GETFORCE") - 12
    for sent in (stream[: end - 24] + b"GETFORCE    ", stream[:end] + bytes(24) + b"GETFORCE    "):
        ours, server = socket.socketpair()
        server.sendall(sent)
        connections = [Connection(ours, Session({4}))]
        with pytest.raises(ProtocolError, match="an <ffsocket> of its own"):
            serve(connections, Evaluator(argon(), harmonic(0.01)))
        close(connections)
        assert b"FORCEREADY" not in server.recv(10_000)
        server.close()


def test_ipv6():
    """i-PI itself listens on IPv4 only; a tunnel may not."""
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    with listener:
        address = Address(host="::1", port=listener.getsockname()[1])
        connect(address, TIME_LIMIT).close()
    assert str(address).startswith("[::1]:")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "required: bundle"),
        (["-u", "a", "--host", "b"], "-u NAME, or --host HOST"),
        (["-u", ""], "-u NAME, or --host HOST"),
        (["-u", "a", "-u", ""], "-u NAME, or --host HOST"),
        (["-u", "a", "-t", "three.xyz"], "2 systems and 1 address"),
        (["-u", "a", "-n", "0"], "'0' is not a whole number of at least 1"),
        (["-u", "a", "--timestep", "-1"], "'-1' is not a number above 0"),
        (["-u", "a", "--timestep", "nan"], "'nan' is not a number above 0"),
        (["-u", "a", "--connect-timeout", "soon"], "'soon' is not a number of at least 0"),
        (["-u", "a", "--pbc", "abc"], "'abc' is not some of x, y, z, or none"),
        (["-u", "x" * 120], "107 bytes"),
        (["--host", "localhost", "--port", "70000"], "70000 is no port"),
        (["-u", "a", "--report", "nowhere/report.json"], "no folder nowhere"),
    ],
)
def test_wrong_words_are_one_line_and_status_1(tmp_path, monkeypatch, capsys, words, complaint):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(client.StopSignal, "install", lambda self: None)
    write("start.xyz", argon(), format="extxyz")
    write("three.xyz", argon()[:3], format="extxyz")
    try:
        status = client.main([*(["water", "-t", "start.xyz"] if words else []), *words])
    except SystemExit as ended:
        status = ended.code
    said = capsys.readouterr().err
    assert (status, said.count("\n")) == (1, 1)
    assert complaint in said


def test_hosts_and_servers_that_are_not_there():
    for address, complaint in (
        (Address(host="no.such.host.invalid", port=31415), "cannot connect to no.such.host.invalid:31415"),
        (Address(path="/nowhere/at/all"), "no server at /nowhere/at/all after 0 s"),
    ):
        with pytest.raises(loop.ServerGone, match=complaint):
            connect(address, 0.0)


@pytest.mark.parametrize("nobody", ["2>&-", "2>/dev/full", "2>&1 | true"])
def test_a_run_goes_on_where_nobody_can_be_told(tmp_path, nobody):
    """Standard error closed, full, or a pipe without a reader. Seen to end in an exception, or status 120."""
    write(tmp_path / "start.xyz", argon(), format="extxyz")
    script = Path(__file__).parent / "ipi_evaluators.py"
    words = "harmonic:0.1 --template start.xyz --path nowhere --connect-timeout 0.5 --report report.json"
    line = f"({sys.executable} {script} {words}; echo $? > status) {nobody}"
    subprocess.run(["sh", "-c", line], cwd=tmp_path, timeout=TIME_LIMIT)
    assert (tmp_path / "status").read_text() == "4\n"
    assert "no server at nowhere" in (tmp_path / "report.json").read_text()


def test_closed_streams_are_stood_in_for():
    """Seen to fail: a socket with the number 2, so that i-PI gets what libraries print."""
    script = """
import os
from mlffd.drivers.ipi.report import open_standard_streams
open_standard_streams()
os.write(2, b"unheard")
os._exit(os.open(os.devnull, os.O_RDONLY))
"""
    ended = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, script], timeout=TIME_LIMIT
    )
    assert ended.returncode == 3


IPI_INPUT = """
<simulation verbosity="low">
  <total_steps>{steps}</total_steps>
  <prng><seed>4</seed></prng>
  <output prefix="out"><properties filename="energies">[ step, potential ]</properties></output>
  <ffsocket name="driver" mode="{mode}" pbc="false" matching="{matching}">
    <address>{address}</address> <port>{port}</port>
    <parameters>{{timestep: 0.5, beads: 8}}</parameters>
    <batch_size>{batch_size}</batch_size>
    <exit_on_disconnect>True</exit_on_disconnect> <latency>1e-3</latency>
  </ffsocket>
  <system>
    <initialize nbeads="8">
      <file mode="ase">start.xyz</file>
      <velocities mode="thermal" units="kelvin">80</velocities>
    </initialize>
    <forces><force forcefield="driver"/></forces>
    <ensemble><temperature units="kelvin">80</temperature></ensemble>
    <motion mode="dynamics">
      <dynamics mode="nve"><timestep units="femtosecond">0.5</timestep></dynamics>
    </motion>
  </system>
</simulation>
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def beads_of_argon(runs, steps=50, mode="unix", matching="auto", batch_size=1, port=31415):
    """i-PI with 8 beads."""
    write(runs.folder / "start.xyz", argon(), format="extxyz")
    address = "localhost" if mode == "inet" else "argon"
    return runs.ipi(IPI_INPUT.format(**locals()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_connections", "matching", "batch_size", "calls_per_step"),
    [(4, "auto", 1, 2), (8, "lock", 1, 1), (2, "auto", 4, 1)],
)
def test_calls_per_step_with_ipi(runs, n_connections, matching, batch_size, calls_per_step):
    """All that i-PI sends at once is one evaluation; lock needs as many connections as beads."""
    steps = 50
    ipi = beads_of_argon(runs, steps, matching=matching, batch_size=batch_size)
    driver = runs.driver("harmonic:0.01", n_connections=n_connections)
    assert [runs.end(driver), runs.end(ipi)] == [0, 0], runs.output()
    report = runs.report()
    assert 8 * steps < report["structures"] <= 8 * (steps + 1)
    # with room for what a busy machine tears apart; one structure at a time would be 8 a step
    assert report["evaluations"] <= 2 * calls_per_step * (steps + 1)
    assert (report["beads"], report["timestep_fs"]) == (8, 0.5)  # what i-PI's <parameters> say


SYSTEM = """
  <ffsocket name="{name}" mode="unix" pbc="false">
    <address>{name}</address> <batch_size>4</batch_size>
    <exit_on_disconnect>True</exit_on_disconnect> <latency>1e-3</latency>
  </ffsocket>
  <system prefix="{name}">
    <initialize nbeads="4">
      <file mode="ase">{name}.xyz</file> <velocities mode="thermal" units="kelvin">80</velocities>
    </initialize>
    <forces><force forcefield="{name}"/></forces>
    <ensemble><temperature units="kelvin">80</temperature></ensemble>
    <motion mode="dynamics">
      <dynamics mode="nve"><timestep units="femtosecond">0.5</timestep></dynamics>
    </motion>
  </system>
"""


@pytest.mark.slow
def test_two_systems_with_ipi(runs):
    """Each on an <ffsocket> of its own and with its own potential energy; mostly in the same evaluation."""
    steps = 20
    structures = {"four": argon(), "three": argon()[:3]}
    for name, atoms in structures.items():
        write(runs.folder / f"{name}.xyz", Atoms(atoms.numbers, atoms.positions, cell=atoms.cell))
    systems = "".join(SYSTEM.format(name=name) for name in structures)
    ipi = runs.ipi(f"""
<simulation verbosity="low">
  <total_steps>{steps}</total_steps> <prng><seed>4</seed></prng>
  <output prefix="out"><properties filename="energies">[ step, potential ]</properties></output>
  {systems}
</simulation>
""")
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from ipi_evaluators import harmonic
from mlffd.drivers.ipi.client import drive
from mlffd.drivers.ipi.loop import Address
from mlffd.drivers.ipi.template import read_templates
names = {list(structures)}
addresses = [Address({str(runs.folder)!r} + "/" + name) for name in names]
templates = read_templates([name + ".xyz" for name in names], "none")
sys.exit(drive(templates, harmonic(0.01), addresses, 20.0, report="report.json"))
"""
    driver = runs.start(sys.executable, "-c", script)
    assert [runs.end(driver), runs.end(ipi)] == [0, 0], runs.output()
    for name, atoms in structures.items():
        energy = np.loadtxt(runs.folder / f"{name}_out.energies")[0, 1]
        assert energy == pytest.approx(0.5 * 0.01 * ((atoms.positions / Bohr) ** 2).sum(), rel=1e-6)
    assert runs.report()["evaluations"] < 2 * (steps + 1)  # as many as there would be with two drivers
    assert runs.report()["steps"] == pytest.approx(steps, abs=1)  # all beads start as one


@pytest.mark.slow
def test_tcp_with_ipi(runs):
    port = free_port()
    ipi = beads_of_argon(runs, mode="inet", batch_size=8, port=port)
    write(runs.folder / "argon.xyz", argon(), format="extxyz")
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from ipi_evaluators import argon, harmonic
from mlffd.drivers.ipi.client import drive
from mlffd.drivers.ipi.loop import Address
sys.exit(drive(argon(), harmonic(0.01), Address(host="localhost", port={port}), 20.0))
"""
    driver = runs.start(sys.executable, "-c", script)
    assert [runs.end(driver), runs.end(ipi)] == [0, 0], runs.output()


@pytest.mark.slow
def test_one_server_after_the_other(runs):
    """--persist: after EXIT, after a killed i-PI and its stale socket file; until SIGTERM."""
    driver = runs.driver("harmonic:0.01", "start.xyz", "argon", 2, "--persist")
    write(runs.folder / "start.xyz", argon(), format="extxyz")
    assert runs.end(beads_of_argon(runs, steps=3)) == 0, runs.output()
    killed = beads_of_argon(runs, steps=10**6)
    runs.wait_for("out.energies", 20)
    killed.kill()
    killed.wait()
    assert (runs.folder / "argon").exists()
    time.sleep(0.3)  # in which the driver knocks at the stale file
    (runs.folder / "argon").unlink()
    assert runs.end(beads_of_argon(runs, steps=3, batch_size=8)) == 0, runs.output()
    assert driver.poll() is None
    driver.send_signal(signal.SIGTERM)
    assert runs.end(driver) == 143, runs.output()
    said = driver.log.read_text()
    assert said.count("the server said EXIT; waiting for the next one") == 2
    assert said.count("without EXIT; waiting for the next one") == 1
    assert runs.report()["ending"] == "stopped by SIGTERM"


@pytest.mark.slow
def test_signals_at_any_moment(runs):
    """Warming up, waiting for a server, computing: there the second signal is the one that counts."""
    write(runs.folder / "start.xyz", argon(), format="extxyz")
    warming = runs.driver("sleep:0")
    runs.wait_for("asleep")
    warming.send_signal(signal.SIGTERM)
    assert runs.end(warming) == 143, runs.output()
    (runs.folder / "asleep").unlink()
    beads_of_argon(runs, batch_size=8)
    computing = runs.driver("sleep:5")
    runs.wait_for("asleep")
    computing.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert computing.poll() is None
    computing.send_signal(signal.SIGINT)
    assert runs.end(computing) == 130, runs.output()
    assert "stopping after this evaluation" in computing.log.read_text()
    waiting = runs.driver("harmonic:0", "start.xyz", "nobody")
    deadline = time.monotonic() + TIME_LIMIT
    while "calling" not in waiting.log.read_text():
        assert time.monotonic() < deadline, runs.output()
        time.sleep(0.02)
    waiting.send_signal(signal.SIGINT)
    assert runs.end(waiting) == 130, runs.output()
    assert not any("Traceback" in process.log.read_text() for process in (warming, computing, waiting))


@pytest.mark.slow
def test_a_signal_during_the_farewell_hides_nothing(runs):
    """The server does not take notice that the driver leaves. Seen to end with 143 and no word of NaN."""
    write(runs.folder / "start.xyz", argon(), format="extxyz")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(runs.folder / "argon"))
        listener.listen()
        listener.settimeout(TIME_LIMIT)
        driver = runs.driver("nan:1")
        server, _ = listener.accept()
        server.sendall(message_stream([argon()]).removesuffix(b"EXIT        "))
        runs.wait_for(DUMP)
        for number in (signal.SIGTERM, signal.SIGINT):
            time.sleep(0.3)
            driver.send_signal(number)
        assert runs.end(driver) == 3, runs.output()
        server.close()
    assert "the force on atom 0 (Ar) is nan" in driver.log.read_text()
    assert runs.report()["exit_status"] == 3
