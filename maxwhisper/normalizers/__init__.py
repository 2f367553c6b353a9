"""Text as it is compared word by word, as `whisper.normalizers`: by the package whisper-normalizer, which is made of that."""

try:
    from maxwhisper.normalizers.basic import BasicTextNormalizer
    from maxwhisper.normalizers.english import EnglishTextNormalizer
except ModuleNotFoundError as error:
    raise ImportError("text is normalised by whisper-normalizer; pip install 'maxwhisper[normalizers]'") from error

__all__ = ["BasicTextNormalizer", "EnglishTextNormalizer"]
