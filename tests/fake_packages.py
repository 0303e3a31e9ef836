# SPDX-License-Identifier: MIT
"""Stand-ins for teachers' packages that are not installed here, with the signatures of the real ones.

Each says which version it was compared with; a keyword that the real function lacks is a TypeError here too.
"""

import sys
from types import ModuleType

import numpy as np
from ase.calculators.calculator import Calculator, all_changes


class Told(Calculator):
    """Remembers what it was built with and the info of every structure; energy 1 eV an atom.

    As many packages do, it computes no more than it is asked for.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]

    def __init__(self, **built):
        super().__init__()
        self.built, self.infos = built, []

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.infos.append(dict(atoms.info))
        energy = float(len(atoms)) + atoms.info.get("charge", 0)
        self.results = {"energy": energy, "free_energy": energy}
        if "forces" in properties:
            self.results["forces"] = np.zeros((len(atoms), 3))
        if "stress" in properties:
            self.results["stress"] = np.arange(6.0)


def install(monkeypatch, adapter, modules):
    """Put modules (name to attributes) where imports find them; `adapter` is told version 9.9."""
    for name, attributes in modules.items():
        parts = name.split(".")
        for n in range(1, len(parts)):
            parent = ".".join(parts[:n])
            if parent not in modules:
                monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
        module = ModuleType(name)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
    if hasattr(sys.modules[f"mlffd.teachers.{adapter}"], "version"):
        monkeypatch.setattr(f"mlffd.teachers.{adapter}.version", lambda package: "9.9")


def orb_older():
    """orb-models 0.5.5."""

    def orb_v2(weights_path="https://orb", device=None, precision="float32-high", compile=None, train=False):
        return dict(vars(), model="orb_v2")

    def ORBCalculator(
        model, *, system_config=None, conservative=None, edge_method=None, max_num_neighbors=None,
        half_supercell=None, device=None, directory=".",
    ):  # fmt: skip
        return Told(loaded=model, device=device)

    models = dict.fromkeys(("orb-v2", "orb-v3-conservative-20-omat", "orb-v3-conservative-omol"), orb_v2)
    return {
        "orb_models.forcefield.pretrained": {"ORB_PRETRAINED_MODELS": models},
        "orb_models.forcefield.calculator": {"ORBCalculator": ORBCalculator},
    }


def orb_newer():
    """orb-models 0.7.0."""

    def orb_v2(
        weights_path="https://orb", device=None, precision="float32-high", compile=None, train=False,
        train_reference_energies=False, loss_weights=None,
    ):  # fmt: skip
        return dict(vars(), model="orb_v2"), "adapter"

    def ORBCalculator(
        model, atoms_adapter, *, edge_method=None, max_num_neighbors=None, half_supercell=None, device=None,
        directory=".",
    ):  # fmt: skip
        return Told(loaded=model, adapter=atoms_adapter, device=device)

    return {
        "orb_models.forcefield.pretrained": {"ORB_PRETRAINED_MODELS": {"orb-v2": orb_v2}},
        "orb_models.forcefield.inference.calculator": {"ORBCalculator": ORBCalculator},
    }


def mace():
    """mace-torch 0.3.16."""

    def mace_mp(
        model=None, device="", default_dtype="float32", dispersion=False, damping="bj", dispersion_xc="pbe",
        dispersion_cutoff=40.0, return_raw_model=False, **kwargs,
    ):  # fmt: skip
        print("Using Materials Project MACE")
        return Told(builder="mace_mp", **vars())

    def mace_off(model=None, device="", default_dtype="float64", return_raw_model=False, **kwargs):
        return Told(builder="mace_off", **vars())

    def mace_omol(model=None, device="", default_dtype="float64", return_raw_model=False, **kwargs):
        return Told(builder="mace_omol", **vars())

    builders = {"mace_mp": mace_mp, "mace_off": mace_off, "mace_omol": mace_omol}
    return {"mace.calculators.foundations_models": builders}


def sevenn():
    """sevenn 0.13.0."""

    def SevenNetCalculator(
        model="7net-0", file_type="checkpoint", device="auto", modal=None, enable_cueq=False,
        enable_flash=False, enable_oeq=False, compute_atomic_virial=False, sevennet_config=None, **kwargs,
    ):  # fmt: skip
        return Told(**vars())

    return {
        "sevenn": {"__version__": "9.9"},
        "sevenn.calculator": {"SevenNetCalculator": SevenNetCalculator},
    }


def fairchem(presets=("default", "high-precision")):
    """fairchem-core 2.24.0; before it had no preset "high-precision"."""

    def get_predict_unit(
        model_name, inference_settings="default", overrides=None, device=None, cache_dir="", workers=1,
        seed=41, gp_config=None,
    ):  # fmt: skip
        assert inference_settings in presets
        assert device in ("cuda", "cpu", None)
        return dict(vars())

    def FAIRChemCalculator(predict_unit, task_name=None, seed=None):
        return Told(**vars())

    return {
        "fairchem.core": {"FAIRChemCalculator": FAIRChemCalculator},
        "fairchem.core.calculate.pretrained_mlip": {"get_predict_unit": get_predict_unit},
        "fairchem.core.units.mlip_unit.api.inference": {
            "NAME_TO_INFERENCE_SETTING": dict.fromkeys(presets),
        },
    }


def chgnet():
    """chgnet 0.4.2."""

    class CHGNet:
        @classmethod
        def load(cls, *, model_name="0.3.0", use_device=None, check_cuda_mem=False, verbose=True):
            return model_name

    def CHGNetCalculator(
        model=None, *, use_device=None, check_cuda_mem=False, stress_weight=0.006, on_isolated_atoms="warn",
        return_site_energies=False, **kwargs,
    ):  # fmt: skip
        assert on_isolated_atoms in ("ignore", "warn", "error")
        return Told(**vars())

    return {
        "chgnet.model.model": {"CHGNet": CHGNet},
        "chgnet.model.dynamics": {"CHGNetCalculator": CHGNetCalculator},
    }


def mattersim():
    """mattersim 1.2.3; what is not named goes on to Potential.from_checkpoint."""

    def from_checkpoint(
        load_path=None, *, model_name="m3gnet", device="cuda", load_training_state=True, **kwargs
    ):
        assert not kwargs
        return load_path

    def MatterSimCalculator(
        potential=None, args_dict=None, compute_stress=True, stress_weight=0.006, device="cuda", **kwargs
    ):
        return Told(potential=from_checkpoint(device=device, **kwargs), device=device)

    return {"mattersim.forcefield": {"MatterSimCalculator": MatterSimCalculator}}


def upet():
    """upet 0.3.1."""

    def UPETCalculator(
        model=None, version="latest", dtype=None, checkpoint_path=None, variants=None,
        rotational_average_order=None, rotational_average_batch_size=None, *, device=None,
        non_conservative=False, uncertainty_threshold=0.1, check_consistency=False,
    ):  # fmt: skip
        assert (model is None) != (checkpoint_path is None)
        return Told(**vars())

    return {"upet.ase": {"UPETCalculator": UPETCalculator}}


def aimnet():
    """aimnet 0.2.5."""

    def AIMNet2Calculator(
        model="aimnet2", nb_threshold=120, needs_coulomb=None, needs_dispersion=None, device=None,
        compile_model=False, compile_kwargs=None, cache_static=False, train=False, deterministic=False,
        ensemble_member=0, revision=None, token=None, *, model_import_paths=None,
        model_import_mode="extend", inference_kernels=False, cuda_graph=False,
    ):  # fmt: skip
        return dict(vars())

    def AIMNet2ASE(base_calc="aimnet2", charge=0, mult=1, validate_species=True):
        return Told(**vars())

    return {"aimnet.calculators": {"AIMNet2Calculator": AIMNet2Calculator, "AIMNet2ASE": AIMNet2ASE}}


class FakeNetwork:
    """A torchani model: a torch module with `ase()`; its stress is a full matrix, as torchani's."""

    def __init__(self, **built):
        self.built = built

    def to(self, device=None, dtype=None):
        return FakeNetwork(**self.built, device=device, dtype=dtype)

    def ase(self, **kwargs):
        assert not kwargs
        return MatrixStress(**self.built)


class MatrixStress(Told):
    """As torchani: results of before stay, and the stress is a matrix."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        before = dict(self.results)
        super().calculate(atoms, properties, system_changes)
        if "stress" in properties:
            self.results["stress"] = len(atoms) * np.arange(9.0).reshape(3, 3)
        self.results = before | self.results


def torchani():
    """torchani 2.0: classes with these arguments; 2.9.0 has functions that also take device and dtype."""

    def ANI1ccx(model_index=None, periodic_table_index=False):
        return FakeNetwork(model="1ccx", periodic_table_index=periodic_table_index)

    def ANI2x(
        model_index=None, neighborlist="all_pairs", strategy="pyaev", periodic_table_index=True, device=None,
        dtype=None,
    ):  # fmt: skip
        return FakeNetwork(model="2x", periodic_table_index=periodic_table_index)

    return {"torchani.models": {"ANI1ccx": ANI1ccx, "ANI2x": ANI2x}}


def fennol():
    """fennol 2026.6.29."""

    def FENNIXCalculator(
        model, gpu_preprocessing=True, atoms=None, verbose=False, energy_terms=None, use_float64=False,
        matmul_prec=None, save_raw_output=False, **kwargs,
    ):  # fmt: skip
        assert not kwargs
        return Told(**vars())

    return {"fennol.ase": {"FENNIXCalculator": FENNIXCalculator}}


def tblite():
    """tblite 0.8.0, whose parameters are those of its default_parameters."""
    known = (
        "method", "charge", "multiplicity", "accuracy", "guess", "max_iterations", "mixer", "mixer_memory",
        "mixer_damping", "annealing", "electric_field", "spin_polarization", "solvation",
        "electronic_temperature", "cache_api", "verbosity", "xtb_config",
    )  # fmt: skip

    class TBLite(Told):
        def set(self, **changes):
            assert set(changes) <= set(known)
            self.told = getattr(self, "told", {}) | changes
            return changes

        def __init__(self, atoms=None, **kwargs):
            super().__init__()
            self.set(**kwargs)

    return {"tblite.ase": {"TBLite": TBLite}}
