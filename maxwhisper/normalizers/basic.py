"""Normalization of text in any language, as `whisper.normalizers.basic`."""

from whisper_normalizer.basic import (
    ADDITIONAL_DIACRITICS,
    BasicTextNormalizer,
    remove_symbols,
    remove_symbols_and_diacritics,
)

__all__ = ["ADDITIONAL_DIACRITICS", "BasicTextNormalizer", "remove_symbols", "remove_symbols_and_diacritics"]
