"""Write one checkpoint in the formats of all compared programs, so that all have equal weights."""

import dataclasses
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from maxwhisper.checkpoint import load_checkpoint
from maxwhisper.checkpoint.catalog import OFFICIAL
from tests.speed.ggml import write_ggml
from tests.speed.programs import CTRANSLATE2, GGML, OPENAI


def write_formats(model: str, folder: Path) -> None:
    """Write a model in all formats to a folder. CTranslate2's is copied if a package contains it.

    Raises:
        CheckpointError: if the model can't be found or read.
    """
    checkpoint = load_checkpoint(model)
    write_ggml(checkpoint, folder / GGML)
    weights = {name: torch.from_numpy(np.array(weight)) for name, weight in checkpoint.weights.items()}
    torch.save({"dims": dataclasses.asdict(checkpoint.dims), "model_state_dict": weights}, folder / OPENAI)
    official = OFFICIAL.get(model)
    if official is not None and official.packaged is not None:
        (folder / CTRANSLATE2).mkdir()
        for package, file in official.packaged.parts:
            spec = find_spec(package)
            assert spec is not None and spec.submodule_search_locations
            path = Path(spec.submodule_search_locations[0], file)
            with path.open("rb") as part, (folder / CTRANSLATE2 / "model.bin").open("ab") as model_file:
                shutil.copyfileobj(part, model_file)
            for sibling in path.parent.iterdir():
                if sibling.suffix in (".json", ".txt"):
                    shutil.copy(sibling, folder / CTRANSLATE2)
