"""Convert checkpoints of earlier versions: `python -m harness.reference.models.convert_checkpoint MODEL.pt ...`.

Earlier files do not say which elements each head knows, nor the shortest distances. The elements are those with a
reference energy. The distances are taken from the shipped sets, where the head was trained on them; otherwise they
remain unknown, and the model does not refuse atoms that are too close.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.reference.datasets.collection import Corpus, Neighbourhood, parted
from harness.reference.datasets.heads import HEADS
from harness.reference.datasets.splitting.splits import SPLITS
from harness.reference.errors import InputError
from harness.reference.models import checkpoints
from harness.reference.models.config import ModelConfig
from harness.reference.models.coverage import shortest_contact
from harness.reference.models.foundation import FoundationModel
from harness.reference.options import build
from harness.reference.storage.sampling.sampler import Drawn

OLD_FORMAT = 2


def convert(path: Path) -> Path:
    """Write the checkpoint beside the old one, under the new ending, and return its path; raises InputError."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["format"] != OLD_FORMAT:
            raise InputError(f"{path}: format {content['format']}, expected {OLD_FORMAT}")
        model = FoundationModel(build(ModelConfig, content["config"]))
        state = {name: value for name, value in content["state"].items() if name != "elements"}
        model.to(state["reference_energy"].dtype)
        state["known_elements"] = (state["reference_energy"] != 0) & content["state"]["elements"]
        state["closest"] = torch.zeros_like(state["scale"])
        model.load_state_dict(state, strict=True)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # the unpickler meets damaged bytes with whatever its opcodes lead to
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{path}: not a checkpoint of format {OLD_FORMAT} ({reason})") from None
    notes = content.get("notes", {})
    find_distances(model, notes.get("training", {}))
    new = path.with_suffix(checkpoints.ENDING)
    checkpoints.save(model, new, notes)
    return new


def find_distances(model: FoundationModel, training: dict[str, Any]) -> None:
    """Set the shortest distance of each head that was trained on a shipped set which is still the same."""
    reach = Neighbourhood(model.config.cutoff, model.config.max_neighbours)
    for name in () if training.get("stores") else training.get("sets", ()):
        options = {"held_out": training["held_out"], "seed": training["split_seed"], "limit": training["limit"]}
        dataset = parted(name, **options)[SPLITS[0]]
        references = torch.from_numpy(np.nan_to_num(dataset.references.energy_ev)).to(model.reference_energy)
        if not torch.equal(references, model.reference_energy[dataset.head]):
            continue
        corpus = Corpus([dataset], reach)
        graphs = (corpus.graphs(Drawn(np.array([0]), np.array([k])))[0] for k in range(len(dataset.samples)))
        model.closest[dataset.head] = shortest_contact(graphs)


def main(paths: list[str]) -> int:
    """Convert each file; returns the exit code."""
    if not paths:
        print(f"usage: {checkpoints.CONVERT} MODEL.pt ...", file=sys.stderr)
        return 2
    try:
        for path in map(Path, paths):
            print(convert(path))
            model = checkpoints.load(path.with_suffix(checkpoints.ENDING))[0]
            unknown = [HEADS[k] for k in torch.nonzero(model.trained & (model.closest == 0)).flatten().tolist()]
            if unknown:
                print(f"shortest distance in training unknown, so that none is refused: {', '.join(unknown)}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
