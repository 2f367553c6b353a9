"""Normalization of texts that are compared word by word, as `whisper.normalizers`.

The package whisper-normalizer, which is derived from that module, does the work.
"""

try:
    from maxwhisper.normalizers.basic import BasicTextNormalizer
    from maxwhisper.normalizers.english import EnglishTextNormalizer
except ModuleNotFoundError as error:
    raise ImportError("text is normalised by whisper-normalizer; pip install 'maxwhisper[normalizers]'") from error

__all__ = ["BasicTextNormalizer", "EnglishTextNormalizer"]
