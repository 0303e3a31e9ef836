# SPDX-License-Identifier: MIT
"""What goes wrong in real runs, with a real ``i-pi``: nobody waits for ever, and no NaN reaches its files."""

import re
import shutil
import signal
import socket
import threading
import time

import pytest
from ase.io import write
from conftest import command
from ipi_evaluators import argon
from ipi_process import TIME_LIMIT

from mlffd.drivers.ipi.evaluator import DUMP

pytestmark = pytest.mark.slow

HARMONIC = "harmonic:0.1"
FOR_EVER = 10**6  # steps


@pytest.fixture(autouse=True)
def only_numbers(runs):
    """After each test: what i-PI has written holds no NaN and no infinity."""
    yield
    for file in runs.folder.glob("**/out.*"):
        rows = re.findall(r"^[^#\n].*", file.read_text(), re.M)
        assert not re.search(r"\b(nan|inf)", "\n".join(rows), re.I), file


def end_all(runs, *processes) -> list[int]:
    """Their exit statuses; they end in that order, or at least not before."""
    return [runs.end(process) for process in processes]


def wait_for_words(runs, process, words: str, times: int = 1):
    """Returns when a process has written those words so often."""
    deadline = time.monotonic() + TIME_LIMIT
    while process.log.read_text().count(words) < times:
        assert time.monotonic() < deadline, runs.output()
        time.sleep(0.02)


# The driver fails


def test_driver_killed_while_evaluating(runs):
    """All that i-PI has sent is read before: the connections end, they are not reset, of which i-PI's thread
    would die; the next driver gets the same structures. Seen to fail with the sockets unread."""
    ways = {"single": (1, 1), "batch": (4, 1), "several": (1, 4)}  # batch size, connections
    started = []
    for name, (batch_size, n_connections) in ways.items():
        inside = runs.inside(name)
        ipi = inside.argon(steps=20, n_beads=4, batch_size=batch_size, exit_on_disconnect=False)
        started.append((inside, ipi, inside.driver("sleep:10", n_connections=n_connections), n_connections))
    alone = runs.argon(steps=FOR_EVER)  # ends with its driver
    started.append((runs, alone, runs.driver("sleep:10"), 0))
    for inside, ipi, driver, n_connections in started:
        inside.wait_for("asleep")
        driver.kill()
        if n_connections:
            assert runs.end(inside.driver(HARMONIC, n_connections=n_connections)) == 0, runs.output()
        assert runs.end(ipi) == 0, runs.output()
        assert len(inside.table()) == 21 or not n_connections


# evaluator, batch size, connections, timestep in fs, and what the driver says in the end
NO_ANSWER = {
    "nan": ("nan:20", 1, 1, 2, "the force on atom 0 (Ar) is nan"),
    "nan-in-a-batch": ("nan:20", 4, 1, 2, "the force on atom 0 (Ar) is nan"),
    "refused": ("refuse:20", 1, 4, 2, "atoms too close"),
    "exploding": ("explode:20", 4, 1, 2, "more than 1000 eV/Å"),
    "timestep": ("argon", 1, 1, 200, "more than 1000 eV/Å"),
    "out-of-cell": ("harmonic:0", 4, 1, 1e14, "from the origin"),
}


def test_no_answer_ends_the_run(runs):
    """Seen to fail, by the time limit, with the check of the forces left out."""
    started = []
    for name, (evaluator, batch_size, n_connections, timestep, words) in NO_ANSWER.items():
        inside = runs.inside(name)
        ipi = inside.argon(FOR_EVER, 4, batch_size, timestep=timestep)
        started.append((inside, inside.driver(evaluator, n_connections=n_connections), ipi, words))
    for inside, driver, ipi, words in started:
        assert end_all(runs, driver, ipi) == [3, 0], runs.output()
        assert words in inside.report()["ending"]
        assert inside.report()["exit_status"] == 3
        assert (inside.folder / DUMP).exists()


def test_signals_end_the_driver_and_the_run(runs):
    started = []
    for number, exit_status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        inside = runs.inside(number.name)
        ipi = inside.argon(FOR_EVER, n_beads=4, batch_size=4)
        started.append((inside, ipi, inside.driver(HARMONIC), number, exit_status))
    ipi = runs.argon(FOR_EVER, n_beads=4, batch_size=4)
    busy = runs.driver("sleep:10")
    for inside, ipi_inside, driver, number, exit_status in started:
        inside.wait_for("out.energies", 5)
        driver.send_signal(number)
        assert end_all(runs, driver, ipi_inside) == [exit_status, 0], runs.output()
        assert inside.report()["exit_status"] == exit_status
    runs.wait_for("asleep")
    busy.terminate()
    wait_for_words(runs, busy, "stopping after this evaluation; at once at the next signal")
    busy.terminate()
    assert end_all(runs, busy, ipi) == [143, 0], runs.output()


@pytest.mark.parametrize("batch_size", [1, 4])
def test_drivers_of_which_all_but_one_die(runs, batch_size):
    """The other one takes over their structures."""
    ipi = runs.argon(FOR_EVER, n_beads=3 * batch_size, batch_size=batch_size, exit_on_disconnect=False)
    good = runs.driver(HARMONIC)
    runs.wait_for("out.energies", 5)
    assert runs.end(runs.driver("nan:20")) == 3, runs.output()
    killed = runs.driver("sleep:20")  # only now: i-PI gives others nothing to do while one is asleep
    runs.wait_for("asleep")
    killed.kill()
    runs.wait_for("out.energies", len(runs.table()) + 20)
    (runs.folder / "EXIT").touch()
    assert end_all(runs, good, ipi) == [0, 0], runs.output()


# The server fails


def test_killed_server_and_the_next_one(runs):
    """One driver ends, the other one was told to persist: it serves the next server at the same address."""
    ipi = runs.argon(FOR_EVER, n_beads=4)
    drivers = [runs.driver(HARMONIC), runs.driver(HARMONIC, "start.xyz", "argon", 2, "--persist")]
    for driver in drivers:
        wait_for_words(runs, driver, "steps/s")
    ipi.kill()
    assert runs.end(drivers[0]) == 4, runs.output()
    wait_for_words(runs, drivers[1], "waiting for the next one")
    assert runs.end(runs.driver(HARMONIC, "start.xyz", "argon", 1, "--connect-timeout", "0.1")) == 4
    assert "left by a killed i-pi?" in runs.report()["ending"]
    (runs.folder / "argon").unlink()
    assert runs.end(runs.argon(steps=20, n_beads=4, batch_size=4)) == 0, runs.output()
    wait_for_words(runs, drivers[1], "waiting for the next one", times=2)
    drivers[1].terminate()
    assert runs.end(drivers[1]) == 143, runs.output()


def test_server_stopped_by_signals_and_continued_from_its_checkpoint(runs):
    """Its EXIT arrives in each case; one driver serves all of its lives."""
    ipi = runs.argon(FOR_EVER, n_beads=4, batch_size=4)
    driver = runs.driver(HARMONIC, "start.xyz", "argon", 1, "--persist")
    for number in (signal.SIGTERM, signal.SIGINT):
        runs.wait_for("out.energies", 5)
        ipi.send_signal(number)
        runs.end(ipi)
        n_rows = len(runs.table())
        ipi = runs.start(command("i-pi"), "-S", f"{runs.folder}/", "RESTART")
        runs.wait_for("out.energies", n_rows + 5)
    (runs.folder / "EXIT").touch()
    assert runs.end(ipi) == 0, runs.output()
    wait_for_words(runs, driver, "the server said EXIT; waiting", times=3)
    driver.terminate()
    assert runs.end(driver) == 143, runs.output()


def test_late_server(runs):
    write(runs.folder / "start.xyz", argon(), format="extxyz")
    patient = runs.driver(HARMONIC)
    impatient = runs.driver(HARMONIC, "start.xyz", "argon", 1, "--connect-timeout", "2")
    assert runs.end(impatient) == 4, runs.output()
    assert "no server at" in impatient.log.read_text()
    ipi = runs.argon(steps=20)
    assert end_all(runs, patient, ipi) == [0, 0], runs.output()


def test_server_that_was_stopped_for_a_while_or_whose_driver_was(runs):
    ipi = runs.argon(FOR_EVER, n_beads=4, batch_size=4)
    driver = runs.driver(HARMONIC)
    for process in (ipi, driver):
        runs.wait_for("out.energies", 5)
        process.send_signal(signal.SIGSTOP)
        time.sleep(1.5)  # i-PI's own limits are 0.1 and 0.5 s
        process.send_signal(signal.SIGCONT)
        runs.wait_for("out.energies", len(runs.table()) + 10)
    (runs.folder / "EXIT").touch()
    assert end_all(runs, driver, ipi) == [0, 0], runs.output()


def test_driver_that_reads_too_slowly(runs):
    """i-PI sends for 0.1 s and drops whoever has not taken all: more than a socket holds, here, and a driver
    that an overloaded machine keeps waiting. With --persist it comes back, and the run goes on."""
    ipi = runs.argon(FOR_EVER, 8, 8, exit_on_disconnect=False, repeat=8)  # 400 kB
    driver = runs.driver("harmonic:0", "start.xyz", "argon", 1, "--persist")
    runs.wait_for("out.energies", 3)
    driver.send_signal(signal.SIGSTOP)
    wait_for_words(runs, ipi, "Timeout in sendall")
    driver.send_signal(signal.SIGCONT)
    runs.wait_for("out.energies", len(runs.table()) + 5)
    assert "without EXIT; waiting for the next one" in driver.log.read_text()
    (runs.folder / "EXIT").touch()
    assert runs.end(ipi) == 0, runs.output()
    driver.terminate()
    assert runs.end(driver) == 143, runs.output()


def test_driver_that_takes_longer_than_the_server_allows(runs):
    """With <timeout>, i-PI closes the connection in the middle of an evaluation."""
    ipi = runs.argon(FOR_EVER, n_beads=4, batch_size=4, timeout=0.3)
    driver = runs.driver("slow:10")
    assert end_all(runs, driver, ipi) == [0, 0], runs.output()


# They don't understand each other


def test_wrong_system_and_wrong_mode(runs):
    started = []
    for name, mode, n_connections, words in (
        ("single", "unix", 1, "4 atoms, the template has 3"),
        ("several", "unix", 4, "4 atoms, the template has 3"),
        ("memory", "shm", 1, "use mode='unix', not 'shm'"),
    ):
        inside = runs.inside(name)
        write(inside.folder / "template.xyz", argon()[:3], format="extxyz")
        ipi = inside.argon(n_beads=4, mode=mode)
        driver = inside.driver(HARMONIC, "template.xyz", n_connections=n_connections)
        started.append((inside, driver, ipi, words))
    for inside, driver, ipi, words in started:
        assert end_all(runs, driver, ipi) == [5, 0], runs.output()
        assert words in inside.report()["ending"]


def listen(path, greeting: bytes):
    """A server that sends its greeting to whoever connects, and then nothing more."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()

    def greet():
        guest, _ = server.accept()
        guest.sendall(greeting)
        while guest.recv(1000):
            pass
        guest.close()

    threading.Thread(target=greet, daemon=True).start()
    return server


def test_servers_that_are_not_ipi(runs):
    """One greets in another protocol, one stops in the middle of a message, one says nothing at all."""
    write(runs.folder / "start.xyz", argon(), format="extxyz")
    greetings = {"ssh": b"SSH-2.0-OpenSSH_9.6\r\n", "broken": b"STATUS      POSDA", "mute": b""}
    servers = [listen(runs.folder / name, greeting) for name, greeting in greetings.items()]
    drivers = [runs.driver(HARMONIC, "start.xyz", name, 1, "--patience", "1") for name in greetings]
    assert end_all(runs, *drivers[:2]) == [5, 5], runs.output()
    assert "SSH-2.0" in drivers[0].log.read_text()
    assert "paused for 1 s in the middle of a message" in drivers[1].log.read_text()
    drivers[2].terminate()
    assert runs.end(drivers[2]) == 143, runs.output()
    for server in servers:
        server.close()


def test_second_server_on_the_same_address(runs):
    """It does not start, and the run at that address is not disturbed."""
    ipi = runs.argon(FOR_EVER)
    driver = runs.driver(HARMONIC)
    runs.wait_for("out.energies", 5)
    inside = runs.inside("second")
    shutil.copy(runs.folder / "start.xyz", inside.folder)
    shutil.copy(runs.folder / "input.xml", inside.folder)
    second = inside.start(command("i-pi"), "-S", f"{runs.folder}/", "input.xml")
    assert runs.end(second) != 0
    runs.wait_for("out.energies", len(runs.table()) + 20)
    (runs.folder / "EXIT").touch()
    assert end_all(runs, driver, ipi) == [0, 0], runs.output()


def test_more_connections_than_structures_and_matching_lock(runs):
    ipi = runs.argon(steps=20, n_beads=2)
    driver = runs.driver(HARMONIC, n_connections=8)
    assert end_all(runs, driver, ipi) == [0, 0], runs.output()
    text = (runs.folder / "input.xml").read_text().replace('pbc="false"', 'pbc="false" matching="lock"')
    ipi = runs.ipi(text)
    driver = runs.driver(HARMONIC, n_connections=3)
    assert end_all(runs, driver, ipi) == [0, 0], runs.output()
