"""Whisper's tokenizer: OpenAI's two vocabularies, their special tokens, and the prompts of them."""

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
    """Return a byte-pair encoding, extended by Whisper's special tokens.

    Args:
        name: "gpt2", for English-only models, or "multilingual".
        num_languages: The number of language tokens.
    """
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
    """Converts text to token ids and back, as `whisper.tokenizer.Tokenizer`."""

    encoding: tiktoken.Encoding
    num_languages: int
    language: str | None = None  # its code; None for English-only models, whose prompt has none
    task: str | None = None  # "transcribe", "translate" or "lang_id"; None for English-only models

    def encode(self, text: str, **kwargs: Any) -> list[int]:
        """Return the tokens of a text.

        Args:
            text: The text.
            kwargs: Further arguments of `tiktoken.Encoding.encode`.

        Raises:
            OptionError: The text contains a special token, such as `<|endoftext|>`, that `kwargs`
                don't allow.
        """
        try:
            return self.encoding.encode(text, **kwargs)
        except ValueError as error:
            raise OptionError(f"{text!r} contains one of Whisper's special tokens; write it differently") from error

    def decode(self, token_ids: list[int], **kwargs: Any) -> str:
        """Return the text of tokens without timestamps."""
        return self.encoding.decode([t for t in token_ids if t < self.timestamp_begin], **kwargs)

    def decode_with_timestamps(self, token_ids: list[int], **kwargs: Any) -> str:
        """Return the text of tokens, with timestamps as `<|1.08|>`."""
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
        """The tokens that every transcript starts with.

        They are the start of the transcript, the language and the task. English-only models have
        only the first.
        """
        language = [] if self.language is None else [self.to_language_token(self.language)]
        task = [] if self.task is None else [self.transcribe if self.task == "transcribe" else self.translate]
        return (self.sot, *language, *task)

    @cached_property
    def sot_sequence_including_notimestamps(self) -> tuple[int, ...]:
        return (*self.sot_sequence, self.no_timestamps)

    @cached_property
    def language_token(self) -> int:
        """The token of the language.

        Raises:
            OptionError: The model is English-only.
        """
        if self.language is None:
            raise OptionError("the prompt of an English-only model has no language token")
        return self.to_language_token(self.language)

    def to_language_token(self, language: str) -> int:
        """Return the token of a language, by its code.

        Raises:
            OptionError: The model's vocabulary lacks the language.
        """
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
        return tuple(range(self.sot + 1, self.sot + 1 + len(self.all_language_codes)))

    @cached_property
    def non_speech_tokens(self) -> tuple[int, ...]:
        """The tokens of annotations, which are suppressed: brackets, notes, speaker tags.

        Hyphens and apostrophes are suppressed only at the start of a word. Of symbols that take
        several tokens only musical ones are suppressed, by their first token. U+2640 to U+267F
        share that token and contain nothing that is spoken.
        """
        symbols = [*'"#()*+/:;<=>@[\\]^_`{|}~「」『』']
        symbols += "<< >> <<< >>> -- --- -( -[ (' (\" (( )) ((( ))) [[ ]] {{ }} ♪♪ ♪♪♪".split()  # noqa: SIM905 a list would be harder to read
        musical = "♩♪♫♬♭♮♯"
        encode = self.encoding.encode_ordinary  # unlike `encode`, does not prepare a slow search for special tokens
        suppressed = {encode(" -")[0], encode(" '")[0]}
        for symbol in [*symbols, *musical]:
            for tokens in (encode(symbol), encode(" " + symbol)):
                if len(tokens) == 1 or symbol in musical:
                    suppressed.add(tokens[0])
        return tuple(sorted(suppressed))

    def split_to_word_tokens(self, tokens: list[int]) -> tuple[list[str], list[list[int]]]:
        """Split tokens into words; into characters in languages without spaces between words.

        Returns:
            The words, and the tokens of each.
        """
        if self.language in ("zh", "ja", "th", "lo", "my", "yue"):
            return self.split_tokens_on_unicode(tokens)
        return self.split_tokens_on_spaces(tokens)

    def split_tokens_on_unicode(self, tokens: list[int]) -> tuple[list[str], list[list[int]]]:
        """Split tokens into the shortest runs that decode to complete characters.

        Returns:
            The text of each run, and its tokens.
        """
        full_text = self.decode_with_timestamps(tokens)
        words, word_tokens, run = list[str](), list[list[int]](), list[int]()
        n_done = 0
        for token in tokens:
            run.append(token)
            text = self.decode_with_timestamps(run)
            index = text.find(_REPLACEMENT)
            # The run is complete if nothing is replaced, or if the full text has the same
            # replacement, because the model chose bytes that are not a character.
            if index < 0 or full_text[n_done + index : n_done + index + 1] == _REPLACEMENT:
                words.append(text)
                word_tokens.append(run)
                n_done += len(text)
                run = []
        return words, word_tokens

    def split_tokens_on_spaces(self, tokens: list[int]) -> tuple[list[str], list[list[int]]]:
        """Split tokens into words, each with the space before it.

        Punctuation marks and special tokens are words of their own.

        Returns:
            The words, and the tokens of each.
        """
        words, word_tokens = list[str](), list[list[int]]()
        for text, run in zip(*self.split_tokens_on_unicode(tokens)):
            starts_word = run[0] >= self.eot or text.startswith(" ") or text.strip() in string.punctuation
            if starts_word or not words:
                words.append(text)
                word_tokens.append(run)
            else:
                words[-1] += text
                word_tokens[-1] += run
        return words, word_tokens


_REPLACEMENT = "\ufffd"  # the character that replaces invalid bytes


@lru_cache
def get_tokenizer(
    multilingual: bool, *, num_languages: int = 99, language: str | None = None, task: str | None = None
) -> Tokenizer:
    """Return the tokenizer of a model, for a language and a task.

    Args:
        multilingual: Whether the model is multilingual; otherwise it is English-only.
        num_languages: The number of the model's languages.
        language: The language, by code or name; English by default.
        task: "transcribe", the default, "translate" or "lang_id".

    Raises:
        OptionError: Whisper has no such language or task.
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
    """Return the code of a language.

    Args:
        language: Its code or English name, in upper or lower case.

    Raises:
        OptionError: Whisper does not know the language.
    """
    code = TO_LANGUAGE_CODE.get(language.lower(), language.lower())
    if code not in LANGUAGES:
        raise OptionError(f"Whisper does not know language {language!r}; give a code or name such as en, de or french")
    return code
