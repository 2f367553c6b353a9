"""Clips as parameters of tests."""

from collections.abc import Collection, Iterable

import pytest

from reference.clips import packaged_clips

ONE_OF_EACH_LANGUAGE = {clip.language: name for name, clip in packaged_clips().items()}.values()
# In other scripts, with and without spaces between words.
IN_THREE_LANGUAGES = [name for name in ONE_OF_EACH_LANGUAGE if packaged_clips()[name].language in ("en", "hi", "zh")]


def some_always(always: Collection[str], names: Iterable[str]) -> list:
    """Return parameters of names, of which all but some are `thorough`."""
    return [pytest.param(name, marks=[] if name in always else pytest.mark.thorough) for name in names]
