# SPDX-License-Identifier: MIT
"""Committees: their mean, what i-PI is told of the members, and what its FFCommittee makes of that."""

import json

import numpy as np
import pytest
from ase.units import Bohr, Hartree
from conftest import command
from ipi_evaluators import Result, Spoiled, argon
from ipi_forcefields import beads, ffdirect, ffsocket, start_argon, write_student

from mlffd.drivers.ase_calculator import Calculator
from mlffd.drivers.ipi.committee import DECIMALS, Committee, committee_extras
from mlffd.drivers.ipi.evaluator import Evaluator, NoAnswer
from mlffd.drivers.ipi.protocol import Request
from mlffd.engine import Engine
from mlffd.errors import ConfigError, UnknownElementError

EPSILONS, CUTOFFS = (0.0104, 0.0110, 0.0098), (6.0, 5.5, 5.0)  # eV, Å


def member(seed: int):
    """An evaluate that answers with random numbers, the same ones each time."""

    def evaluate(structures):
        random = np.random.default_rng(seed)
        return [
            Result(random.normal(), random.normal(size=(len(atoms), 3)), random.normal(size=(3, 3)))
            for atoms in structures
        ]

    return evaluate


def test_answers_with_the_mean_and_keeps_the_members():
    structures = [argon(), argon()[:3]]
    evaluates = [member(seed) for seed in range(3)]
    predictions = Committee(evaluates)(structures)
    of_members = [evaluate(structures) for evaluate in evaluates]
    for k, prediction in enumerate(predictions):
        for name in ("energy", "forces", "virial"):
            members = [getattr(answers[k], name) for answers in of_members]
            np.testing.assert_allclose(getattr(prediction, name), np.mean(members, axis=0), rtol=1e-14)
            np.testing.assert_array_equal([getattr(m, name) for m in prediction.members], members)


def test_extras_have_the_members_nested_in_atomic_units():
    """As i-PI adds them to the lists of other drivers: a member a row. Caught a virial not transposed."""
    (prediction,) = Committee([member(0), member(1)])([argon()])
    extras = json.loads(committee_extras(prediction))
    assert list(extras) == ["committee_pot", "committee_force", "committee_virial"]
    for k, of_member in enumerate(prediction.members):
        assert extras["committee_pot"][k] == of_member.energy / Hartree
        forces, virial = of_member.forces.ravel() * Bohr / Hartree, of_member.virial.T.ravel() / Hartree
        np.testing.assert_allclose(extras["committee_force"][k], forces, atol=10**-DECIMALS, rtol=0)
        np.testing.assert_allclose(extras["committee_virial"][k], virial, atol=10**-DECIMALS, rtol=0)


def test_extras_of_a_member_gone_mad():
    """Where the mean still passes for an answer. Caught numbers beyond 64 bits, all told as the same one."""
    (prediction,) = member(0)([argon()])
    prediction.forces *= 1e9
    told = json.loads(committee_extras(prediction))["committee_force"][0]
    np.testing.assert_allclose(told, prediction.forces.ravel() * Bohr / Hartree, rtol=1e-12)


def test_a_single_student_is_a_committee_of_one():
    (prediction,) = member(0)([argon()])
    (of_committee,) = Committee([member(0)])([argon()])
    assert committee_extras(prediction) == committee_extras(of_committee)
    assert len(json.loads(committee_extras(prediction))["committee_force"]) == 1


def test_members_with_other_cutoffs_and_species(tmp_path):
    """A member may know more species than there are, but none less; the error says which one it was."""
    argon_only = Engine(write_student(tmp_path / "argon.mlffd", cutoff=CUTOFFS[1]))
    both = Engine(write_student(tmp_path / "both.mlffd", species=(10, 18)))
    committee = Committee([both.evaluate, argon_only.evaluate], ["both.mlffd", "argon.mlffd"])
    (prediction,) = committee([argon()])
    energies = [engine.evaluate(argon())[0].energy for engine in (both, argon_only)]
    assert [of_member.energy for of_member in prediction.members] == energies
    neon = argon()
    neon.numbers[2] = 10
    complaint = "argon.mlffd: atom 2 is Ne, but this student knows only: Ar"
    with pytest.raises(UnknownElementError, match=complaint):
        committee([neon])


def test_a_committee_needs_a_member():
    with pytest.raises(ConfigError, match="name one student or more"):
        Committee([])


def test_a_member_without_an_answer(tmp_path, monkeypatch, recwarn):
    """Caught extras written from NaN before anything was checked, with a warning of NumPy."""
    monkeypatch.chdir(tmp_path)
    spoiled = Committee([member(0), Spoiled(member(1), 0, "nan")])
    evaluator = Evaluator(argon(), spoiled, extras=committee_extras)
    with pytest.raises(NoAnswer, match="nan"):
        evaluator([Request(argon().cell.array[None], argon().positions[None])])
    assert not recwarn.list


OUTPUTS = "\n".join(
    f'<trajectory filename="{name}_{k}" stride="1" extra_type="committee_{name}">extras_component_raw({k})'
    "</trajectory>"
    for name in ("pot", "uncertainty")
    for k in range(2)
)


@pytest.mark.slow
def test_spread_of_i_pi_is_that_of_the_members_in_ase(runs):
    """A committee over the socket and one in i-PI's process, both read by FFCommittee in one simulation.
    Caught forces and virials in flat lists, on which i-PI hangs, and members in another order."""
    n_beads, steps = 4, 5
    bundles = [f"member{k}.mlffd" for k in range(3)]
    for bundle, epsilon, cutoff in zip(bundles, EPSILONS, CUTOFFS):
        write_student(runs.folder / bundle, epsilon, cutoff)
    address = runs.folder.name  # i-pi -S does not reach into a committee
    committee = '<ffcommittee name="{}"><parse_json>True</parse_json>{}</ffcommittee>'
    direct = ffdirect("a", "; ".join(bundles), n_beads, more=", extras: true")
    forcefields = committee.format("socket", ffsocket("b", address, n_beads)) + committee.format(
        "direct", direct
    )
    forces = '<force forcefield="socket" weight="0.5"/><force forcefield="direct" weight="0.5"/>'
    ipi = start_argon(runs, forcefields, forces, OUTPUTS, steps, n_beads)
    driver = runs.start(
        command("mlffd-driver"),
        *bundles,
        "-t",
        "start.xyz",
        "-u",
        address,
        "--extras",
        "--dtype",
        "float64",
        "--max-batch-atoms",
        64,
    )
    assert [runs.end(driver), runs.end(ipi)] == [0, 0], runs.output()
    calculators = [Calculator(runs.folder / bundle, dtype="float64") for bundle in bundles]
    energies = [
        [[calculator.get_potential_energy(atoms) / Hartree for calculator in calculators] for atoms in step]
        for step in zip(*beads(runs, n_beads))
    ]
    spread = np.std(energies, axis=2, ddof=1)
    assert spread.min() > 1e-4
    for k in range(2):  # the printed positions have 8 decimals
        members = np.loadtxt(runs.folder / f"out.pot_{k}").reshape(steps + 1, n_beads, 3)
        np.testing.assert_allclose(members, energies, atol=1e-8)
        np.testing.assert_allclose(np.loadtxt(runs.folder / f"out.uncertainty_{k}"), spread, atol=1e-8)
