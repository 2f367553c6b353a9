"""The tokenizer has the vocabularies, special tokens and prompts of OpenAI's."""

from importlib import resources
from pathlib import Path

import pytest
import whisper
from hypothesis import given
from hypothesis import strategies as st

from maxwhisper import OptionError
from maxwhisper.languages import LANGUAGES, TO_LANGUAGE_CODE
from maxwhisper.tokenizer import get_tokenizer

VOCABULARIES = [(False, 99), (True, 99), (True, 100)]
SPECIAL = [
    *("eot", "sot", "transcribe", "translate", "sot_lm", "sot_prev", "no_speech", "no_timestamps", "timestamp_begin"),
    *("sot_sequence", "sot_sequence_including_notimestamps", "non_speech_tokens"),
]


@pytest.mark.parametrize("name", ["gpt2", "multilingual"])
def test_vocabularies_are_openais_files(name: str) -> None:
    actual = resources.files("maxwhisper").joinpath(f"assets/{name}.tiktoken").read_bytes()
    assert actual == (Path(whisper.__file__).parent / "assets" / f"{name}.tiktoken").read_bytes()


def test_languages_are_openais() -> None:
    assert list(LANGUAGES.items()) == list(whisper.tokenizer.LANGUAGES.items())
    assert TO_LANGUAGE_CODE == whisper.tokenizer.TO_LANGUAGE_CODE


@pytest.mark.parametrize("task", [None, "transcribe", "translate"])
@pytest.mark.parametrize("language", [None, "en", "haw", "German", "CASTILIAN"])
@pytest.mark.parametrize(("multilingual", "num_languages"), VOCABULARIES)
def test_special_tokens_are_openais(
    multilingual: bool, num_languages: int, language: str | None, task: str | None
) -> None:
    actual = get_tokenizer(multilingual, num_languages=num_languages, language=language, task=task)
    openai = whisper.tokenizer.get_tokenizer(multilingual, num_languages=num_languages, language=language, task=task)
    for name in SPECIAL:
        assert getattr(actual, name) == getattr(openai, name), name
    assert actual.special_tokens == openai.special_tokens
    languages = dict(zip(openai.all_language_tokens, openai.all_language_codes))  # the order may differ
    assert dict(zip(actual.all_language_tokens, actual.all_language_codes)) == languages
    assert (
        actual.encoding.n_vocab
        == {(False, 99): 51864, (True, 99): 51865, (True, 100): 51866}[multilingual, num_languages]
    )


@pytest.mark.parametrize(("multilingual", "num_languages"), VOCABULARIES)
@given(text=st.text())
def test_any_text_is_encoded_as_by_openai_and_decodes_to_itself(
    multilingual: bool, num_languages: int, text: str
) -> None:
    actual = get_tokenizer(multilingual, num_languages=num_languages)
    tokens = actual.encode(text, disallowed_special=())
    assert tokens == whisper.tokenizer.get_tokenizer(multilingual, num_languages=num_languages).encode(
        text, disallowed_special=()
    )
    assert actual.decode(tokens) == text


@pytest.mark.parametrize(("multilingual", "num_languages"), VOCABULARIES)
@given(data=st.data())
def test_any_tokens_are_decoded_as_by_openai(multilingual: bool, num_languages: int, data: st.DataObject) -> None:
    actual = get_tokenizer(multilingual, num_languages=num_languages)
    openai = whisper.tokenizer.get_tokenizer(multilingual, num_languages=num_languages)
    tokens = data.draw(st.lists(st.integers(0, actual.encoding.n_vocab - 1)))
    assert actual.decode(tokens) == openai.decode(tokens)
    assert actual.decode_with_timestamps(tokens) == openai.decode_with_timestamps(tokens)


def test_unknown_languages_and_tasks_are_named() -> None:
    with pytest.raises(OptionError, match="'Klingon'"):
        get_tokenizer(True, language="Klingon")
    with pytest.raises(OptionError, match="'summarise' is neither"):
        get_tokenizer(True, task="summarise")
    with pytest.raises(OptionError, match="does not know language 'yue'"):
        get_tokenizer(True, num_languages=99, language="yue").sot_sequence  # noqa: B018 a property that raises
