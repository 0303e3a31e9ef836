"""Every student family on every backend, random weights, against the contract; float32 against float64."""

import contract
import numpy as np
import pytest
import torch
from contract import ALL, TRAINED, random_student

from mlffd.engine import BACKENDS, Engine


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    return request.param


def engine_of(name: str, backend: str, dtype: str = "float64") -> Engine:
    return Engine(random_student(name), dtype=dtype, backend=backend)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("promise", contract.EVERY_STUDENT, ids=lambda promise: promise.__name__)
def test_contract(name, promise, backend):
    promise(engine_of(name, backend))


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("promise", contract.TRAINED_STUDENTS, ids=lambda promise: promise.__name__)
def test_contract_of_trained_students(name, promise, backend):
    promise(engine_of(name, backend))


@pytest.mark.parametrize("name", ALL)
def test_float32_agrees_with_float64(name, backend):
    """Energies 1e-6 relative, forces 2e-5 of their RMS: rounding, not another function."""
    exact, single = (engine_of(name, backend, dtype) for dtype in ("float64", "float32"))
    atoms = contract.random_box(exact)
    one, other = contract.evaluate(exact, atoms), contract.evaluate(single, atoms)
    assert np.isclose(one.energy, other.energy, rtol=1e-6)
    contract.assert_close(one.forces, other.forces, 2e-5)
    contract.assert_close(one.stress, other.stress, 2e-5)


@pytest.mark.parametrize("name", ALL)
def test_cpu_agrees_with_reference(name):
    reference, cpu = (engine_of(name, backend) for backend in ("reference", "cpu"))
    for atoms in (contract.random_box(cpu), contract.random_molecule(cpu), contract.lone_atom(cpu)):
        contract.close(contract.evaluate(reference, atoms), contract.evaluate(cpu, atoms))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ALL)
def test_cuda_agrees_with_cpu(name):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    student = random_student(name)
    cpu, cuda = (Engine(student, device=device, dtype="float64") for device in ("cpu", "cuda"))
    atoms = contract.random_box(cpu)
    contract.close(contract.evaluate(cpu, atoms), contract.evaluate(cuda, atoms))


def test_contract_catches_a_wrong_force(monkeypatch):
    """The contract can fail: a virial or force with the wrong sign does not pass."""
    engine = engine_of("local", "reference")
    honest = engine.evaluate

    def flipped(structures):
        predictions = honest(structures)
        for prediction in predictions:
            prediction.stress[:] *= -1.0
            prediction.forces[:] *= -1.0
        return predictions

    monkeypatch.setattr(engine, "evaluate", flipped)
    with pytest.raises(AssertionError):
        contract.forces_are_gradient(engine)
    with pytest.raises(AssertionError):
        contract.stress_is_strain_derivative(engine)
