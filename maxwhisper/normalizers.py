"""Text as it is compared word by word, as `whisper.normalizers`: by the package whisper-normalizer, which is made of that."""

try:
    from whisper_normalizer import english
    from whisper_normalizer.basic import BasicTextNormalizer
except ImportError as error:
    raise ImportError("text is normalised by whisper-normalizer; pip install 'maxwhisper[normalizers]'") from error

__all__ = ["BasicTextNormalizer", "EnglishTextNormalizer"]


class EnglishTextNormalizer(english.EnglishTextNormalizer):
    """English in American spelling, without punctuation, numbers in digits; as `whisper.normalizers.EnglishTextNormalizer`."""

    def __init__(self) -> None:
        super().__init__()
        for added in (r"\bkinda\b", r"\bsorta\b", r"\bdunno\b", r"\bcause\b"):  # which OpenAI's leaves as they are
            del self.replacers[added]
