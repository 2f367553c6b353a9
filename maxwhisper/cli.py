"""The command line: `maxwhisper transcribe AUDIO …`, with the options of `whisper`."""

import argparse
import dataclasses
import io
import os
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from max.engine import InferenceSession

from maxwhisper.audio import Audio
from maxwhisper.checkpoint import available_models, load_checkpoint
from maxwhisper.console import console, explained, say
from maxwhisper.description import describe, oddities
from maxwhisper.engine.compiled import CPU_LEVELS, Target, compile_graphs, cpu_level, find, folder, keep, writing_to
from maxwhisper.engine.devices import absent_gpu, find_device, set_num_threads
from maxwhisper.engine.dtypes import AUTO, COMPUTE_TYPES
from maxwhisper.errors import AudioError, OptionError, OutputError, WhisperError, WhisperWarning
from maxwhisper.interrupts import INTERRUPTED
from maxwhisper.languages import LANGUAGES, TO_LANGUAGE_CODE
from maxwhisper.subtitles import Layout
from maxwhisper.transcript import Transcript, segment_line
from maxwhisper.transcription.batched import transcribe_batched_with
from maxwhisper.transcription.options import TranscriptionOptions
from maxwhisper.transcription.punctuation import APPEND_PUNCTUATIONS, PREPEND_PUNCTUATIONS
from maxwhisper.transcription.sequential import transcribe_with
from maxwhisper.utils import optional_float, optional_int, str2bool
from maxwhisper.whisper import Whisper, load_model
from maxwhisper.writers import FORMATS, get_writer


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments; `sys.argv[1:]` by default.

    Returns:
        The exit status: 0 on success, 1 if any file or the command failed, 130 after Ctrl-C.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # replaces characters that the terminal can't encode
    try:
        with console():
            return _run(**vars(_parser().parse_args(argv)))
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(command: str, debug: bool, **arguments: Any) -> int:
    report = partial(_report, debug=debug)
    try:
        return COMMANDS[command](report, **arguments)
    except Exception as error:
        report(error)
        return 1


Report = Callable[..., None]  # prints an exception; takes the name of the file that it concerns, if any


def _report(error: Exception, name: str | None = None, *, debug: bool) -> None:
    if debug:
        say("".join(traceback.format_exception(error)), "stderr")
    if isinstance(error, WhisperError):
        _warn(error)
    else:
        reason, *_ = "".join(traceback.format_exception_only(error)).split("\n")
        _warn(f"{name}: {reason}" if name else reason)


def _transcribe(
    report: Report,
    audio: list[str],
    model: str,
    model_dir: str | None,
    device: str,
    compute_type: str,
    threads: int | None,
    output_dir: str,
    output_format: str,
    temperature: float,
    temperature_increment_on_fallback: float | None,
    language: str | None,
    batch_size: int | None,
    verbose: bool,
    **arguments: Any,
) -> int:
    names = ["stdin" if path == "-" else path for path in audio]
    _check_outputs(names, output_dir)
    layout = {field.name: arguments.pop(field.name) for field in dataclasses.fields(Layout)}
    _check_layout(layout, arguments["word_timestamps"])
    if batch_size:
        _check_batch(arguments)
    if model.endswith(".en") and language not in (None, "en", "English"):
        _warn(f"{model} knows only English; the audio is transcribed as English, not as {language}")
        language = "en"
    temperatures = [temperature]
    if temperature_increment_on_fallback is not None:
        if not 0.01 <= temperature_increment_on_fallback <= 1:
            raise OptionError(
                f"--temperature_increment_on_fallback {temperature_increment_on_fallback} is not between 0.01 and 1"
            )
        if not 0 <= temperature < np.inf:
            raise OptionError(f"--temperature {temperature} is not 0 or more")
        temperatures = np.arange(temperature, 1.0 + 1e-6, temperature_increment_on_fallback).tolist() or temperatures
    options = TranscriptionOptions.of(**arguments, temperature=temperatures, language=language)
    if threads:
        set_num_threads(threads)
    whisper = load_model(model, device, model_dir, compute_type=compute_type)
    if batch_size:
        results = _batched(whisper, audio, options, verbose, batch_size)
    else:
        results = _one_by_one(whisper, audio, options, verbose)
    writer, failed = get_writer(output_format, output_dir), 0
    for name, result in zip(names, results):
        try:
            if isinstance(result, Exception):
                raise result
            writer(result, name, layout)
        except Exception as error:
            report(error, name)
            failed += 1
    return 1 if failed else 0


def _one_by_one(
    model: Whisper, audio: list[str], options: TranscriptionOptions, verbose: bool
) -> Iterator[Transcript | Exception]:
    for path in audio:
        try:
            yield transcribe_with(options, model, _opened(path), verbose=verbose)
        except Exception as error:
            yield error


def _batched(
    model: Whisper, audio: list[str], options: TranscriptionOptions, verbose: bool, batch_size: int
) -> Iterator[Transcript | Exception]:
    open_once = cache(_opened)  # standard input can be read only once

    def opened(path: str) -> Audio:
        file = open_once(path)
        if isinstance(file, io.BytesIO):
            file.seek(0)
        return file

    for result in _each(audio, lambda paths: transcribe_batched_with(options, model, map(opened, paths), batch_size)):
        if verbose and not isinstance(result, Exception):
            for segment in result["segments"]:
                say(segment_line(segment))
        yield result


def _each(
    audio: list[str], transcribe_files: Callable[[list[str]], Iterator[Transcript | Exception]]
) -> Iterator[Transcript | Exception]:
    """Yield the transcript, or the error, of each of the files that are transcribed together.

    If transcribing them fails, the error does not tell which file caused it. The remaining files
    are then transcribed one by one.
    """
    n_done = 0
    try:
        for result in transcribe_files(audio):
            n_done += 1
            yield result
    except Exception as error:
        remaining = audio[n_done:]
        if not remaining:
            raise
        if len(remaining) == 1:
            yield error
        else:
            for path in remaining:
                yield from _each([path], transcribe_files)


def _opened(path: str) -> Audio:
    """Return a path; for `-`, all of standard input as a file, since most formats need seeking.

    Raises:
        AudioError: Standard input can't be read.
    """
    if path != "-":
        return path
    try:
        file = io.BytesIO(sys.stdin.buffer.read())
    except (AttributeError, OSError, ValueError) as error:  # there is none; it is a folder; it is closed
        reason = getattr(error, "strerror", None) or "it is closed"
        raise AudioError(f"standard input can't be read ({reason}); pipe a recording to it, or name a file") from error
    file.name = "standard input"
    return file


# Options that need each window to be decoded after the one before it.
_SEQUENTIAL_ONLY = ("carry_initial_prompt", "hotwords", "multilingual", "hallucination_silence_threshold")


def _check_batch(arguments: dict[str, Any]) -> None:
    """Check that no option needs windows to be decoded one by one.

    Raises:
        OptionError: One does.
    """
    for name in _SEQUENTIAL_ONLY:
        if arguments[name] is not None and arguments[name] is not False:
            raise OptionError(
                f"--{name} can't be used with --batch_size, which decodes windows independently; leave one of them out"
            )


def _check_layout(layout: dict[str, Any], word_timestamps: bool) -> None:
    """Check the layout of subtitles before any work is done.

    Raises:
        OptionError: An option needs word timestamps, which are off.
    """
    if not word_timestamps and (layout_options := [name for name, value in layout.items() if value]):
        raise OptionError(f"--{layout_options[0]} needs --word_timestamps True")
    if layout["max_line_count"] and not layout["max_line_width"]:
        _warn("--max_line_count has no effect without --max_line_width")
    if layout["max_words_per_line"] and layout["max_line_width"]:
        _warn("--max_words_per_line has no effect together with --max_line_width")


def _warn(message: object) -> None:
    say(f"maxwhisper: {message}", "stderr")


def _compile(
    report: Report,
    model: str,
    model_dir: str | None,
    device: str,
    compute_type: str,
    cpu: str,
    gpu: str | None,
    output_dir: Path | None,
) -> int:
    output_folder = output_dir or folder()
    target_device = absent_gpu(gpu) if gpu else find_device(device)
    target = Target.of(load_checkpoint(model, model_dir), target_device, cpu, compute_type)
    path = find(target, output_folder)
    if path is None:
        with writing_to(output_folder):  # fails before any work is done if the folder can't be written to
            pass
        with explained(f"compiling {model} for {target_device.label} and {cpu}, which takes minutes…", after=0):
            compiled, _ = compile_graphs(target, InferenceSession(devices=[target.device]))
        path = keep(compiled.export_mef, target, output_folder)
    say(str(path))
    return 0


def _inspect(report: Report, model: list[str], model_dir: str | None) -> int:
    failed = 0
    for name in model:
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                checkpoint = load_checkpoint(name, model_dir)
            warned = [str(warning.message) for warning in caught if issubclass(warning.category, WhisperWarning)]
            odd = [("odd", oddity) for oddity in (*warned, *oddities(checkpoint))]
            say(checkpoint.source)
            for about, line in (*describe(checkpoint).items(), *odd):
                say(f"  {about:15}  {line}")
        except Exception as error:  # the other models are still described
            report(error, name)
            failed += 1
    return 1 if failed else 0


def _check_outputs(audio: list[str], output_dir: str) -> None:
    """Check before any work is done that the results can be written.

    Raises:
        OutputError: The folder can't be created or written to.
        OptionError: Transcripts would overwrite each other.
    """
    try:
        os.makedirs(output_dir, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{output_dir} can't be created as a folder ({error.strerror}); choose another --output_dir"
        ) from error
    if not os.access(output_dir, os.W_OK | os.X_OK):
        raise OutputError(f"{output_dir} can't be written to; choose another --output_dir")
    for stem, n in Counter(Path(path).stem for path in audio).items():
        if n > 1:
            raise OptionError(
                f"{n} of the files are named {stem}, so their transcripts would overwrite each other; "
                "transcribe them separately"
            )


COMMANDS: dict[str, Callable[..., int]] = {"transcribe": _transcribe, "compile": _compile, "inspect": _inspect}


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Appends the default to the help of each option; help texts themselves explain None."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="maxwhisper", description="OpenAI's Whisper on MAX Graph: speech to text.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('maxwhisper')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add = commands.add_parser(
        "transcribe",
        help="transcribe audio files",
        description="Transcribe audio files, in any language the model knows.",
        formatter_class=_HelpFormatter,
    ).add_argument

    languages = sorted(LANGUAGES) + sorted(name.title() for name in TO_LANGUAGE_CODE)
    add("audio", nargs="+", help="audio or video files, or - for standard input")
    _add_model(add)
    add("--output_dir", "-o", default=".", help="write the transcripts to this folder")
    add("--output_format", "-f", default="all", choices=[*FORMATS, "all"], help="write the transcripts in this format")
    _add_switch(add, "--verbose", True, "print the text as it is recognised")
    add(
        "--task",
        default="transcribe",
        choices=["transcribe", "translate"],
        help="transcribe the speech in its own language, or translate it to English",
    )
    add(
        "--language",
        choices=languages,
        metavar="LANGUAGE",
        help="language of the speech, by code or name (default: detected)",
    )
    _add_switch(add, "--multilingual", False, "detect the language of each window")
    add(
        "--language_detection_segments",
        type=_positive,
        default=1,
        help="detect the language in at most this many windows",
    )
    add(
        "--temperature",
        type=float,
        default=0,
        help="sample tokens at this temperature; 0 searches beams, or is greedy without --beam_size",
    )
    add("--best_of", type=optional_int, default=5, help="choose from this many samples at temperatures above 0")
    add(
        "--beam_size",
        type=optional_int,
        default=5,
        help="number of beams at temperature 0; None decodes greedily",
    )
    add(
        "--patience",
        type=optional_float,
        help="end beam search after this many finished sequences per beam (default: 1)",
    )
    add(
        "--length_penalty",
        type=optional_float,
        help="exponent of the length penalty, from 0 to 1 (default: divide by the length)",
    )
    add(
        "--suppress_tokens",
        default="-1",
        help="never choose these comma-separated token ids; -1 means all non-speech symbols",
    )
    add("--initial_prompt", help="prompt for the first window, such as names to spell correctly (default: none)")
    _add_switch(add, "--carry_initial_prompt", False, "prompt every window with --initial_prompt")
    add("--hotwords", help="words to expect in every window (default: none)")
    _add_switch(add, "--condition_on_previous_text", True, "prompt each window with the text before it")
    _add_switch(add, "--fp16", True, "accepted for compatibility and ignored; see --compute_type")
    add(
        "--temperature_increment_on_fallback",
        type=optional_float,
        default=0.2,
        help="increase the temperature by this for each further attempt; None makes only one",
    )
    add(
        "--compression_ratio_threshold",
        type=optional_float,
        default=2.4,
        help="decode a window again if its text is this many times as long as compressed by zlib",
    )
    add(
        "--logprob_threshold",
        type=optional_float,
        default=-1.0,
        help="decode a window again if the mean log-probability of its tokens is below this",
    )
    add(
        "--no_speech_threshold",
        type=optional_float,
        default=0.6,
        help="treat a window as silent if its no-speech probability is above this and its text improbable",
    )
    _add_switch(add, "--word_timestamps", False, "give the start, the end and the probability of each word")
    add("--prepend_punctuations", default=PREPEND_PUNCTUATIONS, help="join these marks to the word after them")
    add("--append_punctuations", default=APPEND_PUNCTUATIONS, help="join these marks to the word before them")
    _add_switch(
        add, "--highlight_words", False, "with --word_timestamps: underline each word in srt and vtt as it is spoken"
    )
    add(
        "--max_line_width",
        type=_optional_positive,
        help="with --word_timestamps: the most characters in a line of subtitles (default: no limit)",
    )
    add(
        "--max_line_count",
        type=_optional_positive,
        help="with --max_line_width: the most lines in a subtitle (default: no limit)",
    )
    add(
        "--max_words_per_line",
        type=_optional_positive,
        help="with --word_timestamps, without --max_line_width: the most words in a subtitle (default: no limit)",
    )
    add(
        "--clip_timestamps",
        default="0",
        help="transcribe only these parts: start,end,start,end,… in seconds; the last end may be omitted",
    )
    add(
        "--hallucination_silence_threshold",
        type=optional_float,
        help="with --word_timestamps: skip improbable words amid more silence than this, in seconds (default: off)",
    )
    _add_switch(add, "--vad_filter", False, "skip audio in which Silero's detector finds no speech")
    add(
        "--batch_size",
        type=_positive,
        help="decode this many windows at once, cut at pauses: faster, but not OpenAI's algorithm (default: off)",
    )
    add(
        "--audio_track",
        type=int,
        help="sound track of each file, counted from 0 (default: chosen by FFmpeg)",
    )
    add("--threads", type=optional_int, default=0, help="number of CPU threads; 0 uses all cores")

    add = commands.add_parser(
        "compile",
        help="compile a model's graphs ahead of time",
        description="Compile a model's graphs to a file, for this machine or others. `maxwhisper transcribe` looks"
        " for it in $MAXWHISPER_CACHE, or in ~/.cache/maxwhisper.",
        formatter_class=_HelpFormatter,
    ).add_argument
    _add_model(add)
    add(
        "--cpu",
        default=cpu_level(),
        choices=CPU_LEVELS,
        help="the lowest level of processor that the graphs must run on",
    )
    add(
        "--gpu",
        metavar="ARCHITECTURE",
        help="compile for this GPU architecture, such as sm_90 (NVIDIA H100); no GPU is needed (default: none)",
    )
    add("--output_dir", "-o", type=Path, help="write the file to this folder (default: the cache)")

    add = commands.add_parser(
        "inspect",
        help="show what a model's file is",
        description="Show a model's sizes, dtypes, heads and vocabulary, and what is odd about it. All weights are"
        " read; nothing is compiled.",
        formatter_class=_HelpFormatter,
    ).add_argument
    add("model", nargs="+", help=MODEL_HELP)
    _add_files(add)
    return parser


MODEL_HELP = f"the model: {', '.join(available_models())}, or a path to a file or folder"


def _add_model(add: Callable[..., object]) -> None:
    add("--model", default="tiny.en", help=MODEL_HELP)
    _add_files(add)
    add(
        "--device", default="cpu", help="run the model on this device: cpu, gpu, or one of several GPUs, such as cuda:1"
    )
    add(
        "--compute_type",
        default=AUTO,
        choices=[AUTO, *COMPUTE_TYPES],
        help="compute in this type; int8 (CPU), float16 and bfloat16 (GPU) are faster, and a few words may differ;"
        " auto is float32, or int8 for weights stored in 8 bits",
    )


def _add_files(add: Callable[..., object]) -> None:
    add("--model_dir", help="folder of OpenAI's model files (default: ~/.cache/whisper)")
    add("--debug", action="store_true", help="show the traceback of each error")


def _add_switch(add: Callable[..., object], name: str, default: bool, help: str) -> None:
    add(name, type=_bool, default=default, metavar="{True,False}", help=help)


def _bool(text: str) -> bool:
    try:
        return str2bool(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return int(text)


def _optional_positive(text: str) -> int | None:
    return None if text == "None" else _positive(text)
