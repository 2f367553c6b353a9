"""Subtitles of a transcript, as in OpenAI Whisper's `utils.py`.

Each segment is a subtitle. With word timestamps, words are laid out in lines that fit a screen.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from maxwhisper.transcript import Segment, Word

_LONG_PAUSE = 3.0  # seconds; a new subtitle starts after a longer pause


@dataclass(frozen=True)
class Layout:
    """How words are distributed over subtitles, if there are words."""

    max_line_width: int | None = None  # the most characters in a line
    max_line_count: int | None = None  # the most lines in a subtitle; subtitles then ignore segments
    highlight_words: bool = False  # repeat a subtitle for each of its words, which is underlined
    max_words_per_line: int | None = None  # the most words in a subtitle, unless max_line_width is set


def subtitles(segments: Sequence[Segment], layout: Layout) -> Iterator[tuple[float, float, str]]:
    """Yield the start and end in seconds, and the text, of each subtitle."""
    if not all("words" in segment for segment in segments):
        for segment in segments:
            yield segment["start"], segment["end"], segment["text"].strip().replace("-->", "->")
        return
    for words in _in_lines(segments, layout):
        if layout.highlight_words:
            yield from _word_by_word(words)
        else:
            yield words[0]["start"], words[-1]["end"], "".join(word["word"] for word in words)


def _in_lines(segments: Sequence[Segment], layout: Layout) -> Iterator[list[Word]]:
    """Yield the words of each subtitle; a word that starts a new line begins with a line break."""
    ends_with_segments = layout.max_line_count is None or layout.max_line_width is None
    width, max_words = layout.max_line_width or 1000, layout.max_words_per_line or 1000
    subtitle, length, n_lines = list[Word](), 0, 1
    last = next((word["start"] for segment in segments for word in segment["words"]), 0.0)
    for segment in segments:
        for i, word in enumerate(segment["words"]):
            text = word["word"]
            after_pause = not ends_with_segments and word["start"] - last > _LONG_PAUSE
            opens = ends_with_segments and i % max_words == 0 and bool(subtitle)
            if length > 0 and length + len(text) <= width and not after_pause and not opens:
                length += len(text)
            else:
                text = text.strip()
                is_full = layout.max_line_count is not None and (after_pause or n_lines >= layout.max_line_count)
                if opens or (subtitle and is_full):
                    yield subtitle
                    subtitle, n_lines = [], 1
                elif length > 0:
                    n_lines += 1
                    text = "\n" + text
                length = len(text.strip())
            subtitle.append({**word, "word": text})
            last = word["start"]
    if subtitle:
        yield subtitle


def _word_by_word(words: Sequence[Word]) -> Iterator[tuple[float, float, str]]:
    """Yield a subtitle for the time of each of its words, which is underlined, and for each gap."""
    texts, last = [word["word"] for word in words], words[0]["start"]
    for i, word in enumerate(words):
        if round(1000 * last) != round(1000 * word["start"]):
            yield last, word["start"], "".join(texts)
        underlined = re.sub(r"^(\s*)(.*)$", r"\1<u>\2</u>", texts[i])
        yield word["start"], word["end"], "".join([*texts[:i], underlined, *texts[i + 1 :]])
        last = word["end"]
