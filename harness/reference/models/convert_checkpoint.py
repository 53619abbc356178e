"""Convert checkpoints of earlier versions: `python -m harness.reference.models.convert_checkpoint MODEL.pt ...`.

Earlier files do not record the elements that each head knows, nor the shortest distances. An element counts as known if
it has a reference energy. The distances come from the shipped sets if the head was trained on them; otherwise they
remain unknown, and the model does not refuse atoms that are too close.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.protocol.upgrade import convert_notes
from harness.reference.datasets.catalog import HEADS
from harness.reference.datasets.collection import DatasetCollection, load_shipped_splits
from harness.reference.datasets.splits import SPLITS
from harness.reference.errors import InputError
from harness.reference.models import checkpoints
from harness.reference.models.config import ModelConfig
from harness.reference.models.coverage import find_shortest_contact
from harness.reference.models.foundation import FoundationModel
from harness.reference.storage.sampling.sampler import SampleIndices

OLD_FORMAT = 2


def convert(path: Path) -> Path:
    """Write the converted checkpoint next to the old one, with the new suffix, and return its path.

    Raises:
        InputError: The file is missing, damaged, or not a checkpoint of the earlier format.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["format"] != OLD_FORMAT:
            raise InputError(f"{path}: format {content['format']}, expected {OLD_FORMAT}")
        model = FoundationModel(ModelConfig(**content["config"]))
        state = {name: value for name, value in content["state"].items() if name != "elements"}
        model.to(state["reference_energy"].dtype)
        state["known_elements"] = (state["reference_energy"] != 0) & content["state"]["elements"]
        state["closest"] = torch.zeros_like(state["scale"])
        model.load_state_dict(state, strict=True)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # damaged bytes make the unpickler raise any type of error
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{path}: not a checkpoint of format {OLD_FORMAT} ({reason})") from None
    notes = convert_notes(content.get("notes", {}))
    set_shortest_distances(model, notes.get("training", {}))
    target = path.with_suffix(checkpoints.SUFFIX)
    checkpoints.save(model, target, notes)
    return target


def set_shortest_distances(model: FoundationModel, training: dict[str, Any]) -> None:
    """Set the shortest distance of each head that was trained on a shipped set which is still the same.

    Args:
        model: The model.
        training: The notes of its checkpoint on training.
    """
    spec = model.config.neighbour_spec
    for name in () if training.get("store_folder") else training.get("datasets", ()):
        options = {
            "test_fraction": training["test_fraction"],
            "seed": training["split_seed"],
            "limit": training["max_structures_per_dataset"],
        }
        dataset = load_shipped_splits(name, **options)[SPLITS[0]]
        references = torch.from_numpy(np.nan_to_num(dataset.references.energy_ev)).to(model.reference_energy)
        if not torch.equal(references, model.reference_energy[dataset.head]):
            continue
        collection = DatasetCollection([dataset], spec)
        graphs = (
            collection.load_graphs(SampleIndices(np.array([0]), np.array([k])))[0] for k in range(len(dataset.samples))
        )
        model.closest[dataset.head] = find_shortest_contact(graphs)


def main(paths: list[str]) -> int:
    """Convert each file, and return the exit code."""
    if not paths:
        print(f"usage: {checkpoints.CONVERT} MODEL.pt ...", file=sys.stderr)
        return 2
    try:
        for path in map(Path, paths):
            print(convert(path))
            model = checkpoints.load(path.with_suffix(checkpoints.SUFFIX))[0]
            unknown = [HEADS[k] for k in torch.nonzero(model.trained & (model.closest == 0)).flatten().tolist()]
            if unknown:
                print(f"shortest distance in training unknown, so close atoms are not refused: {', '.join(unknown)}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
