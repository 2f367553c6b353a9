"""The command line: `maxwhisper transcribe AUDIO …`, with the options of `whisper`."""

import argparse
import dataclasses
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from max.engine import InferenceSession

from maxwhisper.batched import transcribe_batched
from maxwhisper.checkpoint import available_models, load_checkpoint
from maxwhisper.compiled import CPU_LEVELS, Target, compile_graphs, cpu_level, find, folder, keep, writing_to
from maxwhisper.decoding import DecodingOptions
from maxwhisper.devices import absent_gpu, find_device, set_num_threads
from maxwhisper.dtypes import COMPUTE_TYPES
from maxwhisper.errors import OptionError, OutputError, WhisperError
from maxwhisper.languages import LANGUAGES, TO_LANGUAGE_CODE
from maxwhisper.model import Whisper, load_model
from maxwhisper.transcribe import options_for_each, segment_line, transcribe
from maxwhisper.utils import FORMATS, Transcript, write_transcript


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, or 1 where a file or all of them could not be transcribed."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that can't show every language still shows the rest
    args = vars(_parser().parse_args(argv))
    command = COMMANDS[args.pop("command")]
    try:
        return command(**args)
    except WhisperError as error:
        print(f"maxwhisper: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _transcribe(
    audio: list[str],
    model: str,
    model_dir: str | None,
    device: str,
    compute_type: str,
    threads: int,
    output_dir: str,
    output_format: str,
    temperature: float,
    temperature_increment_on_fallback: float | None,
    language: str | None,
    batch_size: int | None,
    **options: Any,
) -> int:
    _check_outputs(audio, output_dir)
    if model.endswith(".en") and language not in (None, "en", "English"):
        print(f"maxwhisper: {model} knows only English; taking the audio as English, not {language}", file=sys.stderr)
        language = "en"
    temperatures = [temperature]
    if temperature_increment_on_fallback is not None:
        if not 0.01 <= temperature_increment_on_fallback <= 1:
            raise OptionError(f"--temperature_increment_on_fallback {temperature_increment_on_fallback} is not between 0.01 and 1")
        if not 0 <= temperature < np.inf:
            raise OptionError(f"--temperature {temperature} is not 0 or more")
        temperatures = np.arange(temperature, 1.0 + 1e-6, temperature_increment_on_fallback).tolist() or temperatures

    decode_options = {field.name for field in dataclasses.fields(DecodingOptions)}
    options_for_each(temperatures, {name: value for name, value in options.items() if name in decode_options})  # before any work
    if threads:
        set_num_threads(threads)
    whisper = load_model(model, device, model_dir, compute_type)
    options |= {"temperature": temperatures, "language": language}
    results = _batched(whisper, audio, batch_size, **options) if batch_size else _one_by_one(whisper, audio, **options)
    failed = 0
    for path, result in zip(audio, results):
        try:
            if isinstance(result, WhisperError):
                raise result
            write_transcript(result, path, output_dir, output_format)
        except WhisperError as error:
            print(f"maxwhisper: {error}", file=sys.stderr)
            failed += 1
    return 1 if failed else 0


def _one_by_one(model: Whisper, audio: list[str], **options: Any) -> Iterator[Transcript | WhisperError]:
    for path in audio:
        try:
            yield transcribe(model, path, **options)
        except WhisperError as error:
            yield error


def _batched(
    model: Whisper, audio: list[str], batch_size: int, verbose: bool, condition_on_previous_text: bool, **options: Any
) -> Iterator[Transcript | WhisperError]:
    for result in transcribe_batched(model, audio, batch_size, **options):
        if verbose and not isinstance(result, WhisperError):
            print(*map(segment_line, result["segments"]), sep="\n", flush=True)
        yield result


def _compile(model: str, model_dir: str | None, device: str, compute_type: str, cpu: str, gpu: str | None, output_dir: Path) -> int:
    found = absent_gpu(gpu) if gpu else find_device(device)
    target = Target.of(load_checkpoint(model, model_dir), found, cpu, compute_type)
    path = find(target, output_dir)
    if path is None:
        with writing_to(output_dir):  # else it is said before any work is done
            print(f"compiling {model} for {found.label} and {cpu}, which takes minutes…", file=sys.stderr)
        compiled, _ = compile_graphs(target, InferenceSession(devices=[target.device]))
        path = keep(compiled.export_mef, target, output_dir)
    print(path)
    return 0


def _check_outputs(audio: list[str], output_dir: str) -> None:
    """Find out before any work is done that results could not be written, or would overwrite each other."""
    try:
        os.makedirs(output_dir, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{output_dir} can't be made a folder ({error.strerror}); choose another --output_dir") from error
    if not os.access(output_dir, os.W_OK | os.X_OK):
        raise OutputError(f"{output_dir} can't be written to; choose another --output_dir")
    for stem, n in Counter(Path(path).stem for path in audio).items():
        if n > 1:
            raise OptionError(f"{n} of the files are named {stem}, so their transcripts would overwrite each other; run them apart")


COMMANDS: dict[str, Callable[..., int]] = {"transcribe": _transcribe, "compile": _compile}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="maxwhisper", description="OpenAI's Whisper on MAX Graph: speech to text.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add = commands.add_parser(
        "transcribe",
        help="transcribe audio files",
        description="Transcribe audio files, in any language the model knows.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    ).add_argument

    languages = sorted(LANGUAGES) + sorted(name.title() for name in TO_LANGUAGE_CODE)
    add("audio", nargs="+", help="audio or video files")
    _add_model(add)
    add("--output_dir", "-o", default=".", help="folder for the transcripts")
    add("--output_format", "-f", default="all", choices=[*FORMATS, "all"], help="format of the transcripts")
    add("--verbose", type=_bool, default=True, metavar="{True,False}", help="print the text as it is recognised")
    add("--task", default="transcribe", choices=["transcribe", "translate"], help="write what was said, or translate it to English")
    add("--language", choices=languages, metavar="LANGUAGE", help="what is spoken, by code or name; detected if not given")
    add("--temperature", type=float, default=0, help="temperature to sample at; 0 searches with --beam_size")
    add("--best_of", type=_optional_int, default=5, help="number of samples to choose from, at temperatures above 0")
    add(
        "--beam_size",
        type=_optional_int,
        default=5,
        help="number of sequences to follow at once, at temperature 0; None takes the likeliest",
    )
    add("--patience", type=_optional_float, help="how many times as many sequences as there are beams must end; 1 by default")
    add("--length_penalty", type=_optional_float, help="exponent of the length penalty; None divides by the length")
    add("--suppress_tokens", default="-1", help="token ids never to be chosen; -1 stands for symbols that are not spoken")
    add("--initial_prompt", help="text that sets the scene for the first window, such as names to be spelt right")
    add("--condition_on_previous_text", type=_bool, default=True, metavar="{True,False}", help="prompt each window with the text before it")
    add("--fp16", type=_bool, default=False, metavar="{True,False}", help="taken for compatibility; see --compute_type")
    add("--temperature_increment_on_fallback", type=_optional_float, default=0.2, help="how much hotter to try again; None never does")
    add("--compression_ratio_threshold", type=_optional_float, default=2.4, help="try again where the text repeats itself more than this")
    add("--logprob_threshold", type=_optional_float, default=-1.0, help="try again where tokens are on average less likely than this")
    add("--no_speech_threshold", type=_optional_float, default=0.6, help="take it for silence above this, if also unlikely")
    add("--batch_size", type=_positive, help="transcribe so many windows at once, cut at pauses: faster, but not OpenAI's algorithm")
    add("--threads", type=int, default=0, help="number of CPU threads; 0 uses all cores")

    add = commands.add_parser(
        "compile",
        help="compile a model's graphs ahead of time",
        description="Compile a model's graphs and keep them in a file, for this machine or others. Transcribing looks for it in"
        " $MAXWHISPER_CACHE, ~/.cache/maxwhisper by default.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    ).add_argument
    _add_model(add)
    add("--cpu", default=cpu_level(), choices=CPU_LEVELS, help="the least that the processor must be able to do; this machine's by default")
    add("--gpu", metavar="ARCHITECTURE", help="compile for a GPU of this architecture, which need not be here: sm_90 is NVIDIA's H100")
    add("--output_dir", "-o", type=Path, default=folder(), help="folder for the file")
    return parser


def _add_model(add: Callable[..., object]) -> None:
    add("--model", default="tiny.en", help=f"one of {', '.join(available_models())}, or a model's file or folder")
    add("--model_dir", help="where OpenAI's model files are kept; ~/.cache/whisper by default")
    add("--device", default="cpu", choices=["cpu", "gpu"], help="where to run the model")
    add(
        "--compute_type",
        default="float32",
        choices=COMPUTE_TYPES,
        help="int8, on the CPU, and float16 or bfloat16, on a GPU: faster, now and then another word",
    )


def _bool(text: str) -> bool:
    if text not in ("True", "False"):
        raise argparse.ArgumentTypeError(f"expected True or False, got {text}")
    return text == "True"


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return int(text)


def _optional_int(text: str) -> int | None:
    return None if text == "None" else int(text)


def _optional_float(text: str) -> float | None:
    return None if text == "None" else float(text)
