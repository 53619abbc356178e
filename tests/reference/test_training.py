"""Training learns, the gate finds the right branch, reference energies invent nothing, checkpoints are strict."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from harness import shipped, suites
from harness.events import EventLog, read
from harness.reference import checkpoints, training
from harness.reference.datasets.heads import HEADS
from harness.reference.errors import InputError
from harness.reference.graphs import neighbour_graph
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.structures import Structure
from harness.reference.training import TrainingConfig
from tests.reference.conftest import make_model, molecule

TINY = ModelConfig(hidden_dim=16, num_conv_layers=2, cutoff=4.0, dim_sharedlayers=8, dim_headlayers=16)


def labelled_graphs(count: int, head: int) -> list[training.Graph]:
    """Molecules labelled by a pair potential."""
    graphs = []
    for seed in range(count):
        s = molecule(5, seed)
        d = s.positions[:, None] - s.positions[None]
        r = np.linalg.norm(d, axis=2) + np.eye(5)
        energy = float((np.exp(-r) * (1 - np.eye(5))).sum() / 2)
        forces = (d * (np.exp(-r) / r)[..., None]).sum(1)
        labelled = Structure(s.name, s.numbers, s.positions, head=head, energy=energy, forces=forces)
        graphs.append(neighbour_graph(labelled, cutoff=4.0))
    return graphs


def test_a_single_batch_is_learnt_by_heart(tmp_path: Path) -> None:
    graphs = labelled_graphs(4, head=3)
    torch.manual_seed(0)
    model = FoundationModel(TINY)
    training.fit_references([g.structure for g in graphs], model)
    config = TrainingConfig(epochs=400, batch_size=4, force_weight=1.0, ema_decay=0.9, compile=False, weight_decay=0)
    log = EventLog(tmp_path / "events.jsonl")
    training.train_model(model, graphs, config, log)
    curve = [e["force_mae_ev_per_a"] for e in read(log.path) if e["event"] == "sample"]
    assert curve[-1] < 0.1 * curve[0]


def test_reference_energies_of_absent_elements_are_zero() -> None:
    graphs = labelled_graphs(30, head=2)
    model = make_model(TINY).float()
    model.reference_energy.zero_()
    training.fit_references([g.structure for g in graphs], model)
    present = {int(z) for g in graphs for z in g.structure.numbers}
    for z in range(119):
        assert bool(model.elements[z]) == (z in present)
        if z not in present:
            assert abs(float(model.reference_energy[2, z])) < 1e-6
    assert model.trained.tolist() == [h == 2 for h in range(16)]


def test_the_gate_reproduces_the_right_branch() -> None:
    """Two datasets of different elements, whose heads differ most: the gate must tell them apart."""
    graphs = []
    for head, element, energy in ((0, 6, -50.0), (15, 29, 20.0)):
        for seed in range(20):
            s = molecule(4, seed)
            label = Structure(
                s.name, np.full(4, element), s.positions, head=head, energy=energy, forces=np.zeros((4, 3))
            )
            graphs.append(neighbour_graph(label, cutoff=4.0))
    torch.manual_seed(0)
    model = FoundationModel(TINY).requires_grad_(False)
    training.fit_references([g.structure for g in graphs], model)
    model.scale.fill_(1.0)
    model.heads.layers[-1].bias.copy_(torch.arange(16.0).reshape(16, 1, 1))  # type: ignore[operator]
    model.gate.requires_grad_(True)
    error = training.train_gate(model, graphs, TrainingConfig(gate_steps=400))
    assert error < 0.5
    weights = model.gate(training.collate(graphs).composition.float())
    assert (weights[:20, 0] > 0.9).all()
    assert (weights[20:, 15] > 0.9).all()


def test_a_loss_that_is_not_a_number_names_the_batch(tmp_path: Path) -> None:
    graphs = labelled_graphs(2, head=0)
    model = FoundationModel(TINY)
    model.encoder.embedding.weight.data.fill_(float("nan"))
    config = TrainingConfig(epochs=1, batch_size=2, compile=False)
    with pytest.raises(InputError, match=r"the loss is nan at step 0, batch \['molecule-"):
        training.train_model(model, graphs, config, EventLog(tmp_path / "events.jsonl"))


def test_the_split_is_disjoint_and_holds_every_head() -> None:
    graphs = labelled_graphs(20, head=1) + labelled_graphs(10, head=7)
    train, test = training.split(graphs, 0.1, seed=0)
    assert len(train) + len(test) == 30
    assert not {id(g) for g in train} & {id(g) for g in test}
    assert {g.structure.head for g in test} == {1, 7}


def test_checkpoint_round_trip_is_exact(tmp_path: Path) -> None:
    model = make_model(TINY)
    checkpoints.save(model.float(), tmp_path / "m.pt", {"note": 1})
    loaded, notes = checkpoints.load(tmp_path / "m.pt")
    assert notes == {"note": 1}
    assert loaded.config == model.config
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True)
    )


def test_unusable_checkpoints_are_told_in_one_line(tmp_path: Path) -> None:
    good = tmp_path / "good.pt"
    checkpoints.save(make_model(TINY).float(), good, {})
    (tmp_path / "cut.pt").write_bytes(good.read_bytes()[:1000])
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save({"weights": 1}, tmp_path / "foreign.pt")
    content = torch.load(good, weights_only=True)
    torch.save(content | {"config": content["config"] | {"hidden_dim": 8}}, tmp_path / "misfit.pt")
    del content["state"]["gate.last.bias"]
    torch.save(content, tmp_path / "missing-weight.pt")
    for name in ("cut", "text", "empty", "foreign", "misfit", "missing-weight", "absent"):
        with pytest.raises(InputError) as caught:
            checkpoints.load(tmp_path / f"{name}.pt")
        assert f"{name}.pt: " in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_shipped_checkpoint_is_the_one_that_its_suite_makes() -> None:
    model, notes = checkpoints.load(checkpoints.SHIPPED / "painn-64.pt")
    wanted = suites.load(shipped.find("suites", "checkpoint")).parameters
    made = notes["training"]
    assert isinstance(made, dict)
    assert {k: made[k] for k in wanted["training"]} == wanted["training"]
    sizes = model.config.asdict()
    assert {k: sizes[k] for k in wanted["model"]} == wanted["model"]


def test_the_shipped_checkpoint_has_learnt_forces() -> None:
    """Its own held-out record, and the model's readiness: heads with data are marked, the others are not."""
    model, notes = checkpoints.load(checkpoints.SHIPPED / "painn-64.pt")
    held_out = json.loads(json.dumps(notes["held_out"]))
    assert {HEADS[h] for h in range(16) if model.trained[h]} == {r["head"] for r in held_out}
    assert all(r["energy_mae_ev_per_atom"] < r["composition_only_ev_per_atom"] for r in held_out), held_out
    with_forces = [r for r in held_out if r["force_mae_ev_per_a"] is not None]
    assert len(with_forces) >= 6
    better = [r["head"] for r in with_forces if r["force_mae_ev_per_a"] < 0.5 * r["zero_force_ev_per_a"]]
    assert len(better) >= 4, held_out
