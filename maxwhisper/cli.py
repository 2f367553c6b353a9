"""The command line: `maxwhisper transcribe AUDIO …`, with the options of `whisper`."""

import argparse
import dataclasses
import io
import os
import sys
import traceback
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
from maxwhisper.console import INTERRUPTED, console, say
from maxwhisper.engine.compiled import CPU_LEVELS, Target, compile_graphs, cpu_level, find, folder, keep, writing_to
from maxwhisper.engine.devices import absent_gpu, find_device, set_num_threads
from maxwhisper.engine.dtypes import COMPUTE_TYPES
from maxwhisper.errors import AudioError, OptionError, OutputError, WhisperError
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
    """Run the command line and return its exit status: 0, 1 where a file or all of them could not be transcribed, or 130 after Ctrl-C."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that can't show every language still shows the rest
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


Report = Callable[..., None]  # tells of an exception, perhaps that of a file by this name


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
        _warn(f"{model} knows only English; taking the audio as English, not {language}")
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
    kept = cache(_opened)  # standard input can be read only once

    def opened(path: str) -> Audio:
        file = kept(path)
        if isinstance(file, io.BytesIO):
            file.seek(0)
        return file

    for result in _each(audio, lambda paths: transcribe_batched_with(options, model, map(opened, paths), batch_size)):
        if verbose and not isinstance(result, Exception):
            for segment in result["segments"]:
                say(segment_line(segment))
        yield result


def _each(
    audio: list[str], transcribed: Callable[[list[str]], Iterator[Transcript | Exception]]
) -> Iterator[Transcript | Exception]:
    """What becomes of files that are transcribed together. Where that fails, nobody knows by which, so those left are done one by one."""
    n_done = 0
    try:
        for result in transcribed(audio):
            n_done += 1
            yield result
    except Exception as error:
        left = audio[n_done:]
        if not left:
            raise
        if len(left) == 1:
            yield error
        else:
            for path in left:
                yield from _each([path], transcribed)


def _opened(path: str) -> Audio:
    """A file's path; what `-` stands for is read whole, as most formats can't be read otherwise."""
    if path != "-":
        return path
    try:
        file = io.BytesIO(sys.stdin.buffer.read())
    except (AttributeError, OSError, ValueError) as error:  # none, a folder, or closed
        reason = getattr(error, "strerror", None) or "it is closed"
        raise AudioError(f"standard input can't be read ({reason}); pipe a recording to it, or name a file") from error
    file.name = "standard input"
    return file


# Options that need windows to be decoded one after the other.
_SEQUENTIAL_ONLY = ("carry_initial_prompt", "hotwords", "multilingual", "hallucination_silence_threshold")


def _check_batch(arguments: dict[str, Any]) -> None:
    """Raise OptionError for options that a batch of independent windows can't have."""
    for name in _SEQUENTIAL_ONLY:
        if arguments[name] is not None and arguments[name] is not False:
            raise OptionError(
                f"--{name} can't be had with --batch_size, which decodes windows apart; leave one of them out"
            )


def _check_layout(layout: dict[str, Any], word_timestamps: bool) -> None:
    """Find out before any work is done that subtitles can't be laid out so."""
    if not word_timestamps and (asked := [name for name, value in layout.items() if value]):
        raise OptionError(f"--{asked[0]} needs --word_timestamps True")
    if layout["max_line_count"] and not layout["max_line_width"]:
        _warn("--max_line_count is without effect where there is no --max_line_width")
    if layout["max_words_per_line"] and layout["max_line_width"]:
        _warn("--max_words_per_line is without effect beside --max_line_width")


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
    where = output_dir or folder()
    found = absent_gpu(gpu) if gpu else find_device(device)
    target = Target.of(load_checkpoint(model, model_dir), found, cpu, compute_type)
    path = find(target, where)
    if path is None:
        with writing_to(where):  # else it is said before any work is done
            pass
        say(f"compiling {model} for {found.label} and {cpu}, which takes minutes…", "stderr")
        compiled, _ = compile_graphs(target, InferenceSession(devices=[target.device]))
        path = keep(compiled.export_mef, target, where)
    say(str(path))
    return 0


def _check_outputs(audio: list[str], output_dir: str) -> None:
    """Find out before any work is done that results could not be written, or would overwrite each other."""
    try:
        os.makedirs(output_dir, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{output_dir} can't be made a folder ({error.strerror}); choose another --output_dir"
        ) from error
    if not os.access(output_dir, os.W_OK | os.X_OK):
        raise OutputError(f"{output_dir} can't be written to; choose another --output_dir")
    for stem, n in Counter(Path(path).stem for path in audio).items():
        if n > 1:
            raise OptionError(
                f"{n} of the files are named {stem}, so their transcripts would overwrite each other; run them apart"
            )


COMMANDS: dict[str, Callable[..., int]] = {"transcribe": _transcribe, "compile": _compile}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="maxwhisper", description="OpenAI's Whisper on MAX Graph: speech to text.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('maxwhisper')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add = commands.add_parser(
        "transcribe",
        help="transcribe audio files",
        description="Transcribe audio files, in any language the model knows.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    ).add_argument

    languages = sorted(LANGUAGES) + sorted(name.title() for name in TO_LANGUAGE_CODE)
    add("audio", nargs="+", help="audio or video files; - reads one from standard input")
    _add_model(add)
    add("--output_dir", "-o", default=".", help="folder for the transcripts")
    add("--output_format", "-f", default="all", choices=[*FORMATS, "all"], help="format of the transcripts")
    _add_switch(add, "--verbose", True, "print the text as it is recognised")
    add(
        "--task",
        default="transcribe",
        choices=["transcribe", "translate"],
        help="write what was said, or translate it to English",
    )
    add(
        "--language",
        choices=languages,
        metavar="LANGUAGE",
        help="what is spoken, by code or name; detected if not given",
    )
    _add_switch(add, "--multilingual", False, "detect the language of each window anew")
    add(
        "--language_detection_segments",
        type=_positive,
        default=1,
        help="in how many windows to look for the language, if unclear",
    )
    add("--temperature", type=float, default=0, help="temperature to sample at; 0 searches with --beam_size")
    add("--best_of", type=optional_int, default=5, help="number of samples to choose from, at temperatures above 0")
    add(
        "--beam_size",
        type=optional_int,
        default=5,
        help="number of sequences followed at once, at temperature 0; None takes the likeliest",
    )
    add(
        "--patience",
        type=optional_float,
        help="how many times as many sequences as there are beams must end; 1 by default",
    )
    add("--length_penalty", type=optional_float, help="exponent of the length penalty; None divides by the length")
    add(
        "--suppress_tokens",
        default="-1",
        help="token ids never to be chosen; -1 stands for symbols that are not spoken",
    )
    add("--initial_prompt", help="text that sets the scene for the first window, such as names to be spelt right")
    _add_switch(add, "--carry_initial_prompt", False, "put --initial_prompt before every window")
    add("--hotwords", help="words to be expected in every window")
    _add_switch(add, "--condition_on_previous_text", True, "prompt each window with the text before it")
    _add_switch(add, "--fp16", True, "taken for compatibility; see --compute_type")
    add(
        "--temperature_increment_on_fallback",
        type=optional_float,
        default=0.2,
        help="how much hotter to try again; None never does",
    )
    add(
        "--compression_ratio_threshold",
        type=optional_float,
        default=2.4,
        help="try again where the text repeats itself more than this",
    )
    add(
        "--logprob_threshold",
        type=optional_float,
        default=-1.0,
        help="try again where tokens are on average less likely than this",
    )
    add(
        "--no_speech_threshold",
        type=optional_float,
        default=0.6,
        help="take it for silence above this, if also unlikely",
    )
    _add_switch(add, "--word_timestamps", False, "say of each word when it was said, and how sure that is")
    add("--prepend_punctuations", default=PREPEND_PUNCTUATIONS, help="marks that belong to the word behind them")
    add("--append_punctuations", default=APPEND_PUNCTUATIONS, help="marks that belong to the word before them")
    _add_switch(add, "--highlight_words", False, "with words: underline each in srt and vtt while it is said")
    add("--max_line_width", type=_optional_positive, help="with words: most characters in a line of subtitles")
    add("--max_line_count", type=_optional_positive, help="with words and --max_line_width: most lines in a subtitle")
    add(
        "--max_words_per_line",
        type=_optional_positive,
        help="with words, without --max_line_width: most words in a subtitle",
    )
    add(
        "--clip_timestamps",
        default="0",
        help="start,end,start,end,… in seconds of what to transcribe; the last end may be left out",
    )
    add(
        "--hallucination_silence_threshold",
        type=optional_float,
        help="with words: doubt strange ones amid silence longer than this, in s",
    )
    _add_switch(add, "--vad_filter", False, "leave out what holds no speech, by Silero's detector")
    add(
        "--batch_size",
        type=_positive,
        help="transcribe so many windows at once, cut at pauses: faster, but not OpenAI's algorithm",
    )
    add(
        "--audio_track",
        type=int,
        help="which sound track of a file; 0 is the first; by default the one that FFmpeg takes",
    )
    add("--threads", type=optional_int, default=0, help="number of CPU threads; 0 uses all cores")

    add = commands.add_parser(
        "compile",
        help="compile a model's graphs ahead of time",
        description="Compile a model's graphs and keep them in a file, for this machine or others. Transcribing looks for it in"
        " $MAXWHISPER_CACHE, ~/.cache/maxwhisper by default.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    ).add_argument
    _add_model(add)
    add(
        "--cpu",
        default=cpu_level(),
        choices=CPU_LEVELS,
        help="the least that the processor must be able to do; this machine's by default",
    )
    add(
        "--gpu",
        metavar="ARCHITECTURE",
        help="compile for a GPU of this architecture, which need not be here: sm_90 is NVIDIA's H100",
    )
    add("--output_dir", "-o", type=Path, help="folder for the file")
    return parser


def _add_model(add: Callable[..., object]) -> None:
    add("--model", default="tiny.en", help=f"one of {', '.join(available_models())}, or a model's file or folder")
    add("--model_dir", help="where OpenAI's model files are kept; ~/.cache/whisper by default")
    add("--device", default="cpu", help="where to run the model: cpu, gpu, or one of several, as cuda:1")
    add(
        "--compute_type",
        default="float32",
        choices=COMPUTE_TYPES,
        help="int8, on the CPU, and float16 or bfloat16, on a GPU: faster, now and then another word",
    )
    add("--debug", action="store_true", help="show where in the program an error came up")


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
