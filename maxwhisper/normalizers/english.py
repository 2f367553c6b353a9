"""Rules for English, as `whisper.normalizers.english`."""

from whisper_normalizer import english
from whisper_normalizer.english import EnglishNumberNormalizer, EnglishSpellingNormalizer

__all__ = ["EnglishNumberNormalizer", "EnglishSpellingNormalizer", "EnglishTextNormalizer"]


class EnglishTextNormalizer(english.EnglishTextNormalizer):
    """English in American spelling, without punctuation, numbers in digits; as `whisper.normalizers.EnglishTextNormalizer`."""

    def __init__(self) -> None:
        super().__init__()
        for added in (r"\bkinda\b", r"\bsorta\b", r"\bdunno\b", r"\bcause\b"):  # which OpenAI's leaves as they are
            del self.replacers[added]
