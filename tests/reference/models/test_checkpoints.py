"""Checkpoints are exact and strict, and refused in one line for any wrong bit or impossible size."""

from __future__ import annotations

import random
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from harness.reference.errors import InputError
from harness.reference.models import checkpoints, sealed
from harness.reference.models.config import BackboneName, ModelConfig
from harness.reference.models.convert_checkpoint import convert
from harness.reference.models.foundation import FoundationModel
from harness.reference.training import state as training_state

TINY = ModelConfig(hidden_dim=8, num_conv_layers=2, cutoff=4.0, dim_sharedlayers=8, dim_headlayers=8)
SHIPPED = checkpoints.SHIPPED / "painn-64.safetensors"


def write_tiny_checkpoint(path: Path, **about: Any) -> FoundationModel:
    """Write a checkpoint, with the metadata changed by `about`, and return its model."""
    model = FoundationModel(TINY)
    metadata = {"format": checkpoints.FORMAT, "config": TINY.asdict(), "notes": {}} | about
    sealed.write(path, checkpoints.KIND, model.state_dict(), {k: v for k, v in metadata.items() if v is not None})
    return model


def get_refusal_message(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        checkpoints.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("backbone", ["painn", "pnaeq", "egnn", "schnet", "dimenet", "mace"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip_is_exact_and_keeps_the_dtype(tmp_path: Path, backbone: BackboneName, dtype: torch.dtype) -> None:
    model = FoundationModel(ModelConfig(backbone=backbone, hidden_dim=8, num_conv_layers=2)).to(dtype)
    checkpoints.save(model, tmp_path / "m.safetensors", {"note": 1})
    loaded, notes = checkpoints.load(tmp_path / "m.safetensors")
    assert notes == {"note": 1}
    assert loaded.config == model.config
    actual, expected = loaded.state_dict(), model.state_dict()
    assert actual.keys() == expected.keys()
    assert all(actual[k].dtype == v.dtype and torch.equal(actual[k], v) for k, v in expected.items())


def test_a_repulsion_acts_where_it_did_in_training(tmp_path: Path) -> None:
    """A configuration without these distances is of a version with a repulsion alone up to 0.5, which ended at 0.8."""
    config = TINY.replace(repulsion="zbl", max_neighbours=None)
    assert (config.repulsion_core, config.repulsion_end) == (0.4, 0.7)
    model = FoundationModel(config)
    checkpoints.save(model, tmp_path / "new.safetensors", {})
    loaded = checkpoints.load(tmp_path / "new.safetensors")[0].encoder.repulsion
    assert (loaded.core, loaded.end) == (0.4, 0.7)
    about = {"format": checkpoints.FORMAT, "config": config.asdict(), "notes": {}}
    del about["config"]["repulsion_core"], about["config"]["repulsion_end"]
    sealed.write(tmp_path / "old.safetensors", checkpoints.KIND, model.state_dict(), about)
    loaded = checkpoints.load(tmp_path / "old.safetensors")[0].encoder.repulsion
    assert (loaded.core, loaded.end) == (0.5, 0.8)


def test_every_flipped_bit_is_detected(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    write_tiny_checkpoint(good)
    data = good.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    rng = random.Random(5)
    bits = [rng.randrange(8 * len(data)) for _ in range(300)] + [rng.randrange(8 * header) for _ in range(300)]
    for bit in bits:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        bad.write_bytes(flipped)
        get_refusal_message(bad)
    for size in (0, 1, 7, 8, 9, header - 1, header, header + 1, len(data) - 1):
        bad.write_bytes(data[:size])
        get_refusal_message(bad)
    bad.write_bytes(data + b"\0")
    get_refusal_message(bad)
    bad.write_bytes(data)
    checkpoints.load(bad)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"hidden_dim": 20_000}, "more numbers than the file holds"),
        ({"dim_headlayers": 60_000}, "more numbers than the file holds"),
        ({"num_headlayers": 10**8}, "num_headlayers is 100000000, expected at most 256"),
        ({"num_headlayers": 200}, "204 layers, but"),
        ({"heads": 10**12}, "heads is 1000000000000, expected at most"),
        ({"hidden_dim": 9}, "encoder.conditions.0.film.weight is float32 .16, 16., expected float32 .18, 16."),
        ({"hidden_dim": 8.0}, "hidden_dim is 8.0, expected a whole number"),
        ({"hidden_dim": "8"}, "hidden_dim is '8', expected a whole number"),
        ({"hidden_dim": True}, "hidden_dim is true, expected a whole number"),
        ({"cutoff": float("nan")}, "cutoff is nan, expected"),
        ({"cutoff": float("inf")}, "cutoff is inf, expected at most 100"),
        ({"cutoff": -4.0}, "cutoff is -4.0, expected a number above 0"),
        ({"backbone": "egnn"}, "norm_epsilon is not a hyperparameter of the backbone 'egnn'"),
        ({"backbone": "pain"}, "did you mean 'painn'"),
        ({"heads": None}, "heads is null, expected a whole number"),
        ({"backbone": None}, "backbone is null \\(there are: dimenet"),
        ({"cutoff": None}, "cutoff is null, expected a number"),
        ({"hidden_dims": 8}, "unknown parameter 'hidden_dims'"),
    ],
)
def test_impossible_configuration_is_refused_before_weights_are_allocated(
    tmp_path: Path, config: dict[str, Any], reason: str
) -> None:
    path = tmp_path / "m.safetensors"
    write_tiny_checkpoint(path, config=TINY.asdict() | config)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = get_refusal_message(path)
    with pytest.raises(InputError, match=reason):
        raise InputError(message)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


def test_faulty_keys_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write_tiny_checkpoint(path, notes=None)
    assert checkpoints.load(path)[1] == {}
    write_tiny_checkpoint(path, notes=3)
    assert "notes is missing, or not a mapping" in get_refusal_message(path)
    write_tiny_checkpoint(path, config=None)
    assert "config is missing, or not a mapping" in get_refusal_message(path)
    write_tiny_checkpoint(path, remark="x")
    assert "unknown key 'remark'; expected one of format, config, notes" in get_refusal_message(path)
    write_tiny_checkpoint(path, format=99)
    assert "format 3 expected" in get_refusal_message(path)
    sealed.write(path, "gfm-harness batch", {}, {})
    assert "it is a 'gfm-harness batch', expected a 'gfm-harness checkpoint'" in get_refusal_message(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_refused(tmp_path: Path, value: float) -> None:
    model = FoundationModel(TINY)
    model.scale[3] = value
    checkpoints.save(model, tmp_path / "m.safetensors", {})
    assert "scale holds numbers that are not finite" in get_refusal_message(tmp_path / "m.safetensors")


def test_weights_with_wrong_names_or_types_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    about = {"format": checkpoints.FORMAT, "config": TINY.asdict(), "notes": {}}
    state = FoundationModel(TINY).state_dict()
    incomplete = {k: v for k, v in state.items() if k != "gate.last.bias"}
    sealed.write(path, checkpoints.KIND, incomplete, about)
    assert "gate.last.bias is absent, expected float32 [16]" in get_refusal_message(path)
    sealed.write(path, checkpoints.KIND, state | {"extra": torch.zeros(2)}, about)
    assert "extra is float32 [2], expected absent" in get_refusal_message(path)
    sealed.write(path, checkpoints.KIND, state | {"scale": torch.ones(16).double()}, about)
    assert "of type torch.float32, torch.float64, expected" in get_refusal_message(path)
    sealed.write(path, checkpoints.KIND, state | {"trained": torch.zeros(16)}, about)
    assert "trained is float32 [16], expected bool [16]" in get_refusal_message(path)


def test_other_files_are_identified_and_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    assert "no such checkpoint" in get_refusal_message(path)
    assert "not a readable checkpoint (Is a directory)" in get_refusal_message(tmp_path)
    for content in (b"", b"hello", b"not a checkpoint of any kind", bytes(100), b"[" * 10_000):
        path.write_bytes(content)
        assert "not a readable checkpoint" in get_refusal_message(path)
    save_file({"a": torch.zeros(2)}, path)
    assert "a safetensors file of another program" in get_refusal_message(path)
    deep = b"[" * 100_000
    path.write_bytes(len(deep).to_bytes(8, "little") + deep)
    assert "its header is damaged" in get_refusal_message(path)
    path.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    assert "not a safetensors file, or cut short" in get_refusal_message(path)


def test_checkpoint_of_an_earlier_format_is_converted_by_the_named_command(tmp_path: Path) -> None:
    model = FoundationModel(TINY)
    model.trained[:2] = True
    model.reference_energy[0, [1, 8]] = torch.tensor([-13.0, -2000.0])
    model.reference_energy[1, 26] = -8.0
    old = {k: v for k, v in model.state_dict().items() if k not in ("known_elements", "closest")}
    old["elements"] = model.reference_energy.any(0)
    path = tmp_path / "old.pt"
    torch.save({"format": 2, "config": TINY.asdict(), "state": old, "notes": {"note": 1}}, path)
    message = get_refusal_message(path)
    assert message.endswith(f"convert it: python -m harness.reference.models.convert_checkpoint {path}")
    converted, notes = checkpoints.load(convert(path))
    assert notes == {"note": 1}
    assert all(torch.equal(v, converted.state_dict()[k]) for k, v in old.items() if k != "elements")
    assert [converted.known_elements[k].nonzero().flatten().tolist() for k in range(3)] == [[1, 8], [26], []]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"old.pt: not a checkpoint of format 2"):
        convert(path)


def test_coverage_of_the_shipped_checkpoint_matches_its_training_sets() -> None:
    from harness.reference.datasets.collection import DatasetCollection, load_shipped_splits
    from harness.reference.datasets.reference_energies import ElementState
    from harness.reference.datasets.splits import SPLITS
    from harness.reference.models.coverage import find_shortest_contact
    from harness.reference.storage.sampling.sampler import SampleIndices

    model, notes = checkpoints.load(SHIPPED)
    training = notes["training"]
    assert isinstance(training, dict)
    for name in ("ani1x", "oc2022", "qm7x"):
        dataset = load_shipped_splits(name, test_fraction=training["test_fraction"], seed=training["split_seed"])[
            SPLITS[0]
        ]
        head, sample_numbers = dataset.head, range(len(dataset.samples))
        assert model.known_elements[head].tolist() == (dataset.references.state > ElementState.ABSENT).tolist()
        collection = DatasetCollection([dataset], model.config.neighbour_spec)
        graphs = collection.load_graphs(
            SampleIndices(
                torch.zeros(len(sample_numbers), dtype=torch.int64).numpy(), torch.arange(len(sample_numbers)).numpy()
            )
        )
        assert float(model.closest[head]) == pytest.approx(find_shortest_contact(graphs), rel=1e-6)


def test_training_state_round_trips_and_flipped_bits_are_detected(tmp_path: Path) -> None:
    state = {"a": [torch.arange(3), {"deep": torch.tensor(0.5)}], 7: None, "inf": float("inf"), "text": 'sha256":"0'}
    training_state.save(tmp_path, state, identity={"sizes": (1, 2)})
    loaded = training_state.load(tmp_path, identity={"sizes": [1, 2]})
    assert loaded is not None
    assert torch.equal(loaded["a"][0], torch.arange(3))
    assert loaded["a"][1]["deep"].item() == 0.5
    assert (loaded[7], loaded["inf"], loaded["text"]) == (None, float("inf"), 'sha256":"0')
    path = tmp_path / training_state.FILE_NAME
    data, rng = path.read_bytes(), random.Random(6)
    for _ in range(200):
        flipped = bytearray(data)
        bit = rng.randrange(8 * len(data))
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(InputError, match=r"not a readable training state .*; delete it"):
            training_state.load(tmp_path, identity={"sizes": [1, 2]})
    training_state.save(tmp_path, state, identity={"sizes": [1, 2]})
    with pytest.raises(InputError, match="whose sizes is"):
        training_state.load(tmp_path, identity={"sizes": [3]})


def test_a_state_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    assert training_state.load(tmp_path, identity={}) is None
    (tmp_path / "training.pt").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"training.pt: the state of an earlier version .* delete it to start anew"):
        training_state.load(tmp_path, identity={})
    training_state.save(tmp_path, {"a": 1}, identity={})
    assert training_state.load(tmp_path, identity={}) == {"a": 1}


def test_checkpoint_has_the_permissions_of_other_new_files(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "m.safetensors")
    (tmp_path / "other").touch()
    assert (tmp_path / "m.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
