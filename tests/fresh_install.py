"""Check a fresh installation of maxwhisper: `python -I tests/fresh_install.py beckett.wav`.

Run it with the Python that maxwhisper is installed in. It needs no other package, and ends with a
traceback if something does not work.
"""

import importlib
import pkgutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("max", "numpy", "tiktoken", "safetensors", "huggingface-hub", "imageio-ffmpeg")
EXPECTED_TEXT = "Ever tried, ever failed. No matter, try again. Fail again. Fail better."


def main(audio: str) -> None:
    """Import every module, print the help, and transcribe ten seconds of speech.

    Args:
        audio: path of beckett.wav.
    """
    import maxwhisper

    modules = ["maxwhisper", *(module.name for module in pkgutil.walk_packages(maxwhisper.__path__, "maxwhisper."))]
    for name in modules:
        if not name.endswith("__main__"):
            importlib.import_module(name)
    program = Path(sys.executable).with_name("maxwhisper")
    for arguments in (["--help"], ["transcribe", "--help"], ["compile", "--help"]):
        done = subprocess.run([program, *arguments], capture_output=True, text=True, check=True)
        assert done.stdout.startswith("usage: maxwhisper"), done.stdout
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"maxwhisper {version('maxwhisper')}\n", done.stdout
    assert Path(maxwhisper.__file__).with_name("py.typed").is_file()  # type checkers look for it
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [program, "transcribe", audio, "--beam_size", "None", "-o", folder], check=True, stdout=subprocess.DEVNULL
        )
        written = {path.suffix: path.read_text(encoding="utf-8") for path in Path(folder).iterdir()}
    assert written.keys() == {".txt", ".srt", ".vtt", ".tsv", ".json"}, written.keys()
    text = " ".join(written[".txt"].split())
    assert text == EXPECTED_TEXT, text
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    print(f"Python {sys.version.split()[0]}, {packages}: {len(modules)} modules imported, a file transcribed")


if __name__ == "__main__":
    main(*sys.argv[1:])
