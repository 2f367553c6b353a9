"""Language detection, as in OpenAI Whisper's `decoding.py`."""

from typing import Any

import numpy as np

from maxwhisper.decoding.search import softmax
from maxwhisper.engine.decoder import AudioFeatures
from maxwhisper.errors import OptionError
from maxwhisper.speech_model import SpeechModel
from maxwhisper.tokenizer import Tokenizer, get_tokenizer


def detect_language(
    model: SpeechModel, mel: np.ndarray | AudioFeatures, tokenizer: Tokenizer | None = None
) -> tuple[Any, Any]:
    """Detect the spoken language of each window, as `whisper.detect_language`.

    Args:
        model: A multilingual model.
        mel: Log-mel windows, float32 [n_audio, n_mels, 3000], or their audio features. A single
            window [n_mels, 3000] gives a single token and a single dict.
        tokenizer: The model's own by default.

    Returns:
        The most probable language of each window as a token, int64 [n_audio], and for each window
        the probability of every language by its code.

    Raises:
        OptionError: The model knows only English.
    """
    if not model.is_multilingual:
        raise OptionError(
            "this model knows only English, so it can't tell languages apart; use a multilingual one, such as base"
        )
    features = mel if isinstance(mel, AudioFeatures) else model.embed_audio(mel)
    tokenizer = tokenizer or get_tokenizer(True, num_languages=model.num_languages)
    start = np.full((features.n_audio, 1, 1), tokenizer.sot)
    logits = model.decoder(features).logits(start)[:, 0, 0, list(tokenizer.all_language_tokens)]
    tokens = np.array(tokenizer.all_language_tokens)[logits.argmax(axis=-1)]
    probs = [dict(zip(tokenizer.all_language_codes, row)) for row in softmax(logits).tolist()]
    return (tokens[0], probs[0]) if getattr(mel, "ndim", None) == 2 else (tokens, probs)


def most_probable_language(probs: dict[str, float]) -> str:
    """Return the code of the language with the highest probability."""
    return max(probs, key=lambda language: probs[language])
