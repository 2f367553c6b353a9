"""Write subtitles with short lines, and return the words of a recording with their times."""

from pathlib import Path

import whisper
from whisper.utils import format_timestamp, get_writer


def main(audio: str, folder: Path) -> list[tuple[str, str, float]]:
    model = whisper.load_model("tiny.en")
    result = model.transcribe(audio, word_timestamps=True, temperature=0.0, fp16=False)
    writer = get_writer("srt", str(folder))
    writer(result, audio, {"max_line_width": 30, "max_line_count": 1, "highlight_words": False})
    return [
        (word["word"], format_timestamp(word["start"]), word["probability"])
        for segment in result["segments"]
        for word in segment["words"]
    ]
