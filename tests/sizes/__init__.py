"""All sizes of Whisper, with random weights, in the files that people have them in."""
