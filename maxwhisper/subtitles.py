"""Subtitles of a transcript: a segment each, or words in lines that fit a screen, as OpenAI Whisper's `utils.py` makes them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from maxwhisper.transcript import Segment, Word

_LONG_PAUSE = 3.0  # seconds; what follows stands in a subtitle of its own


@dataclass(frozen=True)
class Layout:
    """How words are shared out among subtitles, where there are words.

    max_line_width: characters in a line; max_line_count: lines in a subtitle, whatever the segments; max_words_per_line: words in a
    subtitle, where max_line_width does not say; highlight_words: show a subtitle once for each word, that one underlined.
    """

    max_line_width: int | None = None
    max_line_count: int | None = None
    highlight_words: bool = False
    max_words_per_line: int | None = None


def subtitles(segments: Sequence[Segment], layout: Layout) -> Iterator[tuple[float, float, str]]:
    """Start and end in seconds, and text."""
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
    """The words of each subtitle, with line breaks."""
    ends_with_segments = layout.max_line_count is None or layout.max_line_width is None
    width, n_most = layout.max_line_width or 1000, layout.max_words_per_line or 1000
    subtitle, length, n_lines = list[Word](), 0, 1
    last = next((word["start"] for segment in segments for word in segment["words"]), 0.0)
    for segment in segments:
        for i, word in enumerate(segment["words"]):
            text = word["word"]
            after_pause = not ends_with_segments and word["start"] - last > _LONG_PAUSE
            opens = ends_with_segments and i % n_most == 0 and bool(subtitle)
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
    """A subtitle while each of its words is said, and between them."""
    texts, last = [word["word"] for word in words], words[0]["start"]
    for i, word in enumerate(words):
        if round(1000 * last) != round(1000 * word["start"]):
            yield last, word["start"], "".join(texts)
        underlined = re.sub(r"^(\s*)(.*)$", r"\1<u>\2</u>", texts[i])
        yield word["start"], word["end"], "".join([*texts[:i], underlined, *texts[i + 1 :]])
        last = word["end"]
