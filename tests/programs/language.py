"""Detect the language and transcribe the first 30 seconds.

This is the lower-level program of the README of `openai-whisper`.
"""

from pathlib import Path

import whisper


def main(audio: str, folder: Path) -> tuple[str, str]:
    model = whisper.load_model("base")

    # load audio and pad/trim it to fit 30 seconds
    samples = whisper.load_audio(audio)
    samples = whisper.pad_or_trim(samples)

    # make log-Mel spectrogram and move to the same device as the model
    mel = whisper.log_mel_spectrogram(samples, n_mels=model.dims.n_mels).to(model.device)
    assert whisper.pad_or_trim(mel, whisper.audio.N_FRAMES).to(model.device).shape == mel.shape

    # detect the spoken language
    _, probs = model.detect_language(mel)
    language = max(probs, key=probs.get)

    # decode the audio
    options = whisper.DecodingOptions(fp16=False)
    result = whisper.decode(model, mel, options)
    return language, result.text
