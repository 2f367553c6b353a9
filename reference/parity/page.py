"""The HTML report, `report/parity.html`: one file without external resources."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import whisper
from markupsafe import Markup, escape

from reference.parity import pictures
from reference.parity.clip import ClipReport
from reference.report.page import Picture, render

TEMPLATE = Path(__file__).parent / "page.html"


def page(clips: Sequence[ClipReport], document: dict[str, Any], tokenizer: whisper.tokenizer.Tokenizer) -> str:
    """Render the HTML report.

    Args:
        clips: the compared recordings.
        document: as returned by `reference.parity.document.document` for them.
        tokenizer: OpenAI Whisper's, for the labels of tokens.
    """
    sections = [
        {
            "data": data,
            "pictures": _pictures(clip, tokenizer),
            "texts": _mark_differences(data["text"]["openai"], data["text"]["max"]),
        }
        for clip, data in zip(clips, document["clips"], strict=True)
    ]
    return render(TEMPLATE, document=document, clips=sections)


def _pictures(clip: ClipReport, tokenizer: whisper.tokenizer.Tokenizer) -> list[Picture]:
    if not clip.windows:
        return []
    first, seconds = clip.windows[0], len(clip.samples) / 16000
    question = first.question
    n_tokens = min(len(question.forced), len(clip.openai.windows[0].tokens) or len(question.forced))
    begin = len(question.prompt)
    # The query at one position chooses the token at the next one.
    weights = first.attention[begin - 1 : begin - 1 + n_tokens]
    labels = [tokenizer.decode_with_timestamps([token]).strip() or "␣" for token in question.forced[:n_tokens]]
    return [
        pictures.error_growth(first.activations),
        pictures.rms_ratios(first.activations),
        pictures.log_mel(question.mel, seconds),
        pictures.cross_attention(weights, labels, seconds),
    ]


def _mark_differences(openai: str, actual: str) -> dict[str, Markup]:
    """Return both transcripts as HTML, with a mark on words that only one of them has."""
    a, b = openai.split(), actual.split()
    marked: dict[str, list[Markup]] = {"openai": [], "max": []}
    for kind, a0, a1, b0, b1 in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        for name, words in (("openai", a[a0:a1]), ("max", b[b0:b1])):
            text = escape(" ".join(words))
            if words:
                marked[name].append(text if kind == "equal" else Markup("<mark>{}</mark>").format(text))
    return {name: Markup(" ").join(parts) for name, parts in marked.items()}
