"""Normalization of English text, as `whisper.normalizers.english`."""

from whisper_normalizer import english
from whisper_normalizer.english import EnglishNumberNormalizer, EnglishSpellingNormalizer

__all__ = ["EnglishNumberNormalizer", "EnglishSpellingNormalizer", "EnglishTextNormalizer"]


class EnglishTextNormalizer(english.EnglishTextNormalizer):
    """Normalizes English text, as `whisper.normalizers.EnglishTextNormalizer`.

    The result has American spelling, numbers in digits, and no punctuation.
    """

    def __init__(self) -> None:
        super().__init__()
        # OpenAI's normalizer does not have these rules.
        for rule in (r"\bkinda\b", r"\bsorta\b", r"\bdunno\b", r"\bcause\b"):
            del self.replacers[rule]
