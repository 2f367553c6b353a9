"""Whisper's tokenizer: OpenAI's two vocabularies, their special tokens, and the prompts made of those."""

import binascii
import string
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources
from typing import Any

import tiktoken

from maxwhisper.errors import OptionError
from maxwhisper.languages import LANGUAGES, TO_LANGUAGE_CODE

# How GPT-2 splits text before byte-pair encoding (Radford et al., 2019).
_SPLIT = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


@lru_cache
def get_encoding(name: str = "gpt2", num_languages: int = 99) -> tiktoken.Encoding:
    """The byte-pair encoding `name` ("gpt2", for English-only models, or "multilingual") with Whisper's special tokens after it."""
    lines = resources.files("maxwhisper").joinpath(f"assets/{name}.tiktoken").read_bytes().splitlines()
    ranks = {binascii.a2b_base64(token): int(rank) for token, rank in (line.split() for line in lines)}
    specials = [
        "<|endoftext|>",
        "<|startoftranscript|>",
        *(f"<|{language}|>" for language in list(LANGUAGES)[:num_languages]),
        "<|translate|>",
        "<|transcribe|>",
        "<|startoflm|>",
        "<|startofprev|>",
        "<|nospeech|>",
        "<|notimestamps|>",
        *(f"<|{i * 0.02:.2f}|>" for i in range(1501)),
    ]
    return tiktoken.Encoding(
        name=f"{name}.tiktoken",
        explicit_n_vocab=len(ranks) + len(specials),
        pat_str=_SPLIT,
        mergeable_ranks=ranks,
        special_tokens={token: len(ranks) + i for i, token in enumerate(specials)},
    )


@dataclass(frozen=True)
class Tokenizer:
    """Text to token ids and back, and the ids of the special tokens by name, as `whisper.tokenizer.Tokenizer`.

    `language` and `task` are None for English-only models, whose prompt has neither.
    """

    encoding: tiktoken.Encoding
    num_languages: int
    language: str | None = None
    task: str | None = None

    def encode(self, text: str, **kwargs: Any) -> list[int]:
        """Raises OptionError where the text holds a special token, such as `<|endoftext|>`, that `kwargs` don't allow."""
        try:
            return self.encoding.encode(text, **kwargs)
        except ValueError as error:
            raise OptionError(f"{text!r} holds one of Whisper's special tokens; write it in another way") from error

    def decode(self, token_ids: list[int], **kwargs: Any) -> str:
        """The text of the tokens; timestamps are left out."""
        return self.encoding.decode([t for t in token_ids if t < self.timestamp_begin], **kwargs)

    def decode_with_timestamps(self, token_ids: list[int], **kwargs: Any) -> str:
        """The text of the tokens, timestamps written as `<|1.08|>`."""
        return self.encoding.decode(token_ids, **kwargs)

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        return {token: self.encoding.encode_single_token(token) for token in self.encoding.special_tokens_set}

    @cached_property
    def eot(self) -> int:
        return self.encoding.eot_token

    @cached_property
    def sot(self) -> int:
        return self.special_tokens["<|startoftranscript|>"]

    @cached_property
    def transcribe(self) -> int:
        return self.special_tokens["<|transcribe|>"]

    @cached_property
    def translate(self) -> int:
        return self.special_tokens["<|translate|>"]

    @cached_property
    def sot_lm(self) -> int:
        return self.special_tokens["<|startoflm|>"]

    @cached_property
    def sot_prev(self) -> int:
        return self.special_tokens["<|startofprev|>"]

    @cached_property
    def no_speech(self) -> int:
        return self.special_tokens["<|nospeech|>"]

    @cached_property
    def no_timestamps(self) -> int:
        return self.special_tokens["<|notimestamps|>"]

    @cached_property
    def timestamp_begin(self) -> int:
        return self.special_tokens["<|0.00|>"]

    @cached_property
    def sot_sequence(self) -> tuple[int, ...]:
        """What every transcript starts with: start, language, task; start alone for English-only models."""
        language = [] if self.language is None else [self.to_language_token(self.language)]
        task = [] if self.task is None else [self.transcribe if self.task == "transcribe" else self.translate]
        return (self.sot, *language, *task)

    @cached_property
    def sot_sequence_including_notimestamps(self) -> tuple[int, ...]:
        return (*self.sot_sequence, self.no_timestamps)

    @cached_property
    def language_token(self) -> int:
        """Raises OptionError for English-only models, whose prompt has none."""
        if self.language is None:
            raise OptionError("an English-only model's prompt names no language")
        return self.to_language_token(self.language)

    def to_language_token(self, language: str) -> int:
        """Raises OptionError where the model's vocabulary lacks the language."""
        if language not in self.all_language_codes:
            raise OptionError(
                f"this model does not know language {language!r}, only {', '.join(self.all_language_codes)}"
            )
        return self.sot + 1 + self.all_language_codes.index(language)

    @cached_property
    def all_language_codes(self) -> tuple[str, ...]:
        return tuple(LANGUAGES)[: self.num_languages]

    @cached_property
    def all_language_tokens(self) -> tuple[int, ...]:
        return tuple(range(self.sot + 1, self.sot + 1 + self.num_languages))

    @cached_property
    def non_speech_tokens(self) -> tuple[int, ...]:
        """Tokens that annotate instead of saying what was said: brackets, notes, speaker tags; suppressed by default.

        Hyphens and apostrophes are suppressed only at the start of a word. Symbols of several tokens are suppressed where they are
        musical, by their first token: U+2640 to U+267F share it, and all of those may go.
        """
        symbols = [*'"#()*+/:;<=>@[\\]^_`{|}~「」『』']
        symbols += "<< >> <<< >>> -- --- -( -[ (' (\" (( )) ((( ))) [[ ]] {{ }} ♪♪ ♪♪♪".split()  # noqa: SIM905 readable as it is
        musical = "♩♪♫♬♭♮♯"
        encode = (
            self.encoding.encode_ordinary
        )  # none of these is special, and the search for those that are takes a while to start
        found = {encode(" -")[0], encode(" '")[0]}
        for symbol in [*symbols, *musical]:
            for tokens in (encode(symbol), encode(" " + symbol)):
                if len(tokens) == 1 or symbol in musical:
                    found.add(tokens[0])
        return tuple(sorted(found))

    def split_to_word_tokens(self, tokens: list[int]) -> tuple[list[str], list[list[int]]]:
        """Words, and the tokens of each; characters in languages that don't part words by spaces."""
        if self.language in ("zh", "ja", "th", "lo", "my", "yue"):
            return self.split_tokens_on_unicode(tokens)
        return self.split_tokens_on_spaces(tokens)

    def split_tokens_on_unicode(self, tokens: list[int]) -> tuple[list[str], list[list[int]]]:
        """The shortest runs of tokens that are whole characters, as text and as tokens."""
        whole = self.decode_with_timestamps(tokens)
        words, word_tokens, run = list[str](), list[list[int]](), list[int]()
        n_done = 0
        for token in tokens:
            run.append(token)
            text = self.decode_with_timestamps(run)
            where = text.find(_REPLACEMENT)
            if (
                where < 0 or whole[n_done + where : n_done + where + 1] == _REPLACEMENT
            ):  # what the model said may be no character, too
                words.append(text)
                word_tokens.append(run)
                n_done += len(text)
                run = []
        return words, word_tokens

    def split_tokens_on_spaces(self, tokens: list[int]) -> tuple[list[str], list[list[int]]]:
        """Words with the space before them; punctuation and special tokens stand alone."""
        words, word_tokens = list[str](), list[list[int]]()
        for text, run in zip(*self.split_tokens_on_unicode(tokens)):
            alone = run[0] >= self.eot or text.startswith(" ") or text.strip() in string.punctuation
            if alone or not words:
                words.append(text)
                word_tokens.append(run)
            else:
                words[-1] += text
                word_tokens[-1] += run
        return words, word_tokens


_REPLACEMENT = "\ufffd"  # what stands for bytes that are no character


@lru_cache
def get_tokenizer(
    multilingual: bool, *, num_languages: int = 99, language: str | None = None, task: str | None = None
) -> Tokenizer:
    """The tokenizer of a multilingual or an English-only model, set to a language (by code or name) and a task.

    Raises OptionError for a language or task that Whisper doesn't have.
    """
    if language is not None:
        language = language_code(language)
    if task not in (None, "transcribe", "translate", "lang_id"):
        raise OptionError(f"task {task!r} is neither 'transcribe' nor 'translate'")
    if not multilingual:
        return Tokenizer(get_encoding("gpt2", num_languages), num_languages)
    encoding = get_encoding("multilingual", num_languages)
    return Tokenizer(encoding, num_languages, language or "en", task or "transcribe")


def language_code(language: str) -> str:
    """The code of a language given by code or English name, in any case. Raises OptionError where Whisper doesn't know it."""
    code = TO_LANGUAGE_CODE.get(language.lower(), language.lower())
    if code not in LANGUAGES:
        raise OptionError(f"Whisper does not know language {language!r}; give a code or name such as en, de or french")
    return code
