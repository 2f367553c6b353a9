"""The report to look at, `report/parity.html`: one file, nothing loaded from anywhere."""

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
    """The whole page."""
    shown = [
        {
            "data": data,
            "pictures": _pictures(clip, tokenizer),
            "texts": _marked(data["text"]["openai"], data["text"]["max"]),
        }
        for clip, data in zip(clips, document["clips"], strict=True)
    ]
    return render(TEMPLATE, document=document, clips=shown)


def _pictures(clip: ClipReport, tokenizer: whisper.tokenizer.Tokenizer) -> list[Picture]:
    if not clip.windows:
        return []
    first, seconds = clip.windows[0], len(clip.samples) / 16000
    question = first.question
    n_tokens = min(len(question.forced), len(clip.theirs.windows[0].tokens) or len(question.forced))
    begin = len(question.prompt)
    # A token is chosen by the query at the position before it.
    weights = first.attention[begin - 1 : begin - 1 + n_tokens]
    labels = [tokenizer.decode_with_timestamps([token]).strip() or "␣" for token in question.forced[:n_tokens]]
    return [
        pictures.error_growth(first.activations),
        pictures.share_of_bounds(first.activations),
        pictures.log_mel(question.mel, seconds),
        pictures.cross_attention(weights, labels, seconds),
    ]


def _marked(theirs: str, ours: str) -> dict[str, Markup]:
    """Both transcripts, words that only one of them has marked."""
    a, b = theirs.split(), ours.split()
    marked: dict[str, list[Markup]] = {"openai": [], "max": []}
    for kind, a0, a1, b0, b1 in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        for name, words in (("openai", a[a0:a1]), ("max", b[b0:b1])):
            text = escape(" ".join(words))
            if words:
                marked[name].append(text if kind == "equal" else Markup("<mark>{}</mark>").format(text))
    return {name: Markup(" ").join(parts) for name, parts in marked.items()}
