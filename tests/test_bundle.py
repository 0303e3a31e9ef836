"""Bundles: what is written is read, damage is refused in one line, and repair infers or refuses."""

import json
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch
from contract import ALL, random_box, random_student

from mlffd.__main__ import main
from mlffd.bundle import METADATA_KEY, read_bundle, read_bundle_bytes, write_bundle
from mlffd.engine import Engine
from mlffd.errors import BundleError
from mlffd.repair import repair


@pytest.fixture
def bundle_path(tmp_path):
    path = tmp_path / "student.mlffd"
    write_bundle(path, random_student("local"), {"name": "random", "teacher": {"name": "none"}})
    return path


def rewrite(path, change_metadata=lambda m: None, change_tensors=lambda t: None) -> None:
    """Write the file again with metadata or tensors changed behind mlffd's back."""
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = json.loads(header["__metadata__"][METADATA_KEY])
    tensors = safetensors.torch.load(content)
    change_metadata(metadata)
    change_tensors(tensors)
    path.write_bytes(safetensors.torch.save(tensors, {METADATA_KEY: json.dumps(metadata)}))


def replace_metadata(path, text: str) -> None:
    path.write_bytes(safetensors.torch.save(safetensors.torch.load(path.read_bytes()), {METADATA_KEY: text}))


def same_energy(one, other) -> bool:
    engines = [Engine(student, dtype="float64") for student in (one, other)]
    atoms = random_box(engines[0])
    return engines[0].evaluate([atoms])[0].energy == engines[1].evaluate([atoms])[0].energy


@pytest.mark.parametrize("name", ALL)
def test_round_trip(name, tmp_path):
    student = random_student(name)
    path = tmp_path / "x.mlffd"
    write_bundle(path, student, {"teacher": {"name": "T"}})
    bundle = read_bundle(path)
    assert same_energy(student, bundle.student)
    assert bundle.metadata["teacher"] == {"name": "T"}
    assert bundle.metadata["architecture"] == student.architecture
    assert read_bundle_bytes(bundle.to_bytes()).metadata == bundle.metadata
    assert [file.name for file in tmp_path.iterdir()] == ["x.mlffd"], "no temporary file is left"


def test_reading_and_writing_again_changes_no_byte(tmp_path):
    """Weights trained in float32 stay float32 in the file, though a bundle is read into float64."""
    write_bundle(tmp_path / "a", random_student("local").cast(torch.float32))
    bundle = read_bundle(tmp_path / "a")
    assert next(bundle.student.parameters()).dtype == torch.float64
    assert bundle.to_bytes() == (tmp_path / "a").read_bytes()
    assert len(bundle.to_bytes()) < 4.2 * sum(t.numel() for t in bundle.student.state_dict().values()) + 4096


def test_a_failed_write_keeps_the_old_file(bundle_path, monkeypatch):
    before = bundle_path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_bundle(bundle_path, random_student("painn"))
    assert bundle_path.read_bytes() == before
    assert len(list(bundle_path.parent.iterdir())) == 1


def unfit(tensors):
    tensors["networks.0.mixing"] = tensors["networks.0.mixing"][:2].contiguous()


def not_finite(tensors):
    tensors["networks.1.mixing"][0, 0, 0] = np.nan


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "no student bundle at"),
        (lambda path: path.write_text("hello, I am not a student at all"), "damaged or not a student"),
        (lambda path: path.write_bytes(b""), "damaged or not a student"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "damaged or not a student"),
        (lambda path: safetensors.torch.save_file({"a": torch.zeros(1)}, path), "no mlffd metadata"),
        (lambda path: rewrite(path, lambda m: m.update(format=99)), "bundle format 99"),
        (lambda path: rewrite(path, lambda m: m.pop("format")), "no format number"),
        (lambda path: rewrite(path, lambda m: m.pop("architecture")), "no architecture"),
        (lambda path: replace_metadata(path, "[]"), "no table"),
        (lambda path: replace_metadata(path, "[" * 100000), "damaged or not|no mlffd metadata"),
        (lambda path: replace_metadata(path, '{"format": 0}'), "format 0 lacks 'model'"),
        (lambda path: replace_metadata(path, '{"format": 0, "model": 5}'), "format 0 lacks"),
        (lambda path: rewrite(path, lambda m: m.update(architecture=5)), "mlffd repair"),
        (lambda path: rewrite(path, lambda m: m["architecture"].update(hidden=[16000, 16000])), "hidden"),
        (lambda path: rewrite(path, lambda m: m["architecture"].update(species=[1e400])), "species"),
        (lambda path: rewrite(path, lambda m: m["architecture"].update(family="gap")), "unknown student"),
        (lambda path: rewrite(path, lambda m: m["architecture"].update(chanels=3)), "chanels"),
        (lambda path: rewrite(path, lambda m: m["architecture"].update(channels=5)), "do not fit"),
        (lambda path: rewrite(path, lambda m: m["architecture"].update(channels="x")), "mlffd repair"),
        (lambda path: rewrite(path, lambda m: m["architecture"].update(cutoff=9.0)), "cutoff"),
        (lambda path: rewrite(path, lambda m: m["architecture"].update(species=[8, 1])), "species"),
        (lambda path: rewrite(path, change_tensors=unfit), "do not fit"),
        (lambda path: rewrite(path, change_tensors=not_finite), "not finite"),
    ],
)  # fmt: skip
def test_damage_is_one_clear_line(bundle_path, damage, message, capsys):
    damage(bundle_path)
    with pytest.raises(BundleError, match=message) as caught:
        read_bundle(bundle_path)
    assert "\n" not in str(caught.value)
    assert str(bundle_path) in str(caught.value)
    assert main(["info", str(bundle_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_format_0_is_upgraded(bundle_path):
    student = read_bundle(bundle_path).student

    def age(metadata):
        model = metadata.pop("architecture")
        model["elements"] = ["H", "O"]
        del model["species"]
        metadata.update(model=model, format=0)

    rewrite(bundle_path, age)
    bundle = read_bundle(bundle_path)
    assert bundle.metadata["format"] == 1
    assert bundle.metadata["teacher"] == {"name": "none"}
    assert same_energy(student, bundle.student)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}}]
)
def test_repair_of_a_state_dict(name, wrap, tmp_path):
    student = random_student(name)
    torch.save(wrap(student.state_dict()), tmp_path / "bare.pt")
    repaired = repair(tmp_path / "bare.pt")
    assert repaired.student.architecture == student.architecture
    assert same_energy(student, repaired.student)


def test_repair_of_wrong_metadata(bundle_path, tmp_path, capsys):
    student = read_bundle(bundle_path).student
    rewrite(bundle_path, lambda m: m["architecture"].update(channels=7, l_max=1, cutoff=3.0))
    output = tmp_path / "mended.mlffd"
    assert main(["repair", str(bundle_path), "-o", str(output)]) == 0
    mended = read_bundle(output)
    assert mended.student.architecture == student.architecture
    assert mended.metadata["teacher"] == {"name": "none"}, "facts that were right are kept"
    assert main(["check", str(output)]) == 0
    assert "FAIL" not in capsys.readouterr().out


def test_repair_asks_for_what_tensors_do_not_tell(tmp_path):
    student = random_student("painn")
    tensors = student.state_dict()
    del tensors["species_numbers"], tensors["cutoff_radius"]
    torch.save(tensors, tmp_path / "bare.pt")
    with pytest.raises(BundleError, match="--species"):
        repair(tmp_path / "bare.pt")
    with pytest.raises(BundleError, match="--cutoff"):
        repair(tmp_path / "bare.pt", species=[1, 8])
    assert repair(tmp_path / "bare.pt", [1, 8], 4.0).student.architecture == student.architecture
    torch.save(student.state_dict(), tmp_path / "bare.pt")
    with pytest.raises(BundleError, match="differs from --species"):
        repair(tmp_path / "bare.pt", species=[1, 6])


def test_repair_refuses_what_no_student_can_be(tmp_path):
    honest = random_student("local").state_dict()
    for name, wrong in (
        ("cutoff_radius", torch.tensor(-4.0)),
        ("cutoff_radius", torch.zeros(3)),
        ("species_numbers", torch.tensor(8)),
        ("species_numbers", torch.tensor([1, 999])),
        ("neighbor_weights", torch.zeros(1, 0)),
        ("networks.0.mixing", torch.zeros(3)),
    ):
        torch.save({**honest, name: wrong}, tmp_path / "x.pt")
        with pytest.raises(BundleError) as caught:
            repair(tmp_path / "x.pt")
        assert "\n" not in str(caught.value)
    torch.save({**honest, "module.cutoff_radius": torch.tensor(5.0)}, tmp_path / "x.pt")
    with pytest.raises(BundleError, match="prefix"):
        repair(tmp_path / "x.pt")
    torch.save({3: torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(BundleError, match="no state dict"):
        repair(tmp_path / "x.pt")


def test_a_student_that_answers_nan_is_not_written(tmp_path):
    student = random_student("local")
    with torch.no_grad():
        student.networks[0].mixing[0, 0, 0] = torch.nan
    with pytest.raises(BundleError, match="not finite"):
        write_bundle(tmp_path / "x.mlffd", student)
    assert not list(tmp_path.iterdir())


def test_repair_refuses_strangers(tmp_path):
    torch.save({"conv1.weight": torch.zeros(3, 3)}, tmp_path / "other.pt")
    with pytest.raises(BundleError, match="no student family"):
        repair(tmp_path / "other.pt", [1], 3.0)
    with pytest.raises(BundleError, match="cannot read"):
        repair(tmp_path / "missing.pt")
    (tmp_path / "text.pt").write_text("no")
    with pytest.raises(BundleError, match="not a file of tensors"):
        repair(tmp_path / "text.pt")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_repair_executes_nothing(tmp_path):
    """A pickle that would create a file when loaded is refused and does not."""
    torch.save({"weight": Bomb(str(tmp_path / "trace"))}, tmp_path / "bomb.pt")
    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps(Bomb(str(tmp_path / "trace"))))
    for name in ("bomb.pt", "bomb.pkl"):
        with pytest.raises(BundleError, match="not a file of tensors"):
            repair(tmp_path / name)
    assert not (tmp_path / "trace").exists()


def test_check_finds_a_student_that_is_not_sound(bundle_path, monkeypatch, capsys):
    from mlffd.students.local import LocalStudent

    honest = LocalStudent.interaction

    def turned(self, graph, species_idx, distance):  # prefers a direction in space
        return (
            honest(self, graph, species_idx, distance)
            + graph.edge_vectors[:, 0].sum() * 0.01 * distance.sum()
        )

    monkeypatch.setattr(LocalStudent, "interaction", turned)
    assert main(["check", str(bundle_path)]) == 1
    assert "FAIL" in capsys.readouterr().out
