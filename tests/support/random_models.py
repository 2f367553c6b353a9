"""Small random models in OpenAI Whisper, and noise for them to transcribe."""

import numpy as np

from maxwhisper.audio import SAMPLE_RATE
from tests.support.torch_model import random_model

MODELS = {is_multilingual: random_model(is_multilingual) for is_multilingual in (False, True)}
# Float32 [n_samples]: 40 seconds, and three such windows of increasing loudness.
NOISE_SAMPLES = 0.1 * np.random.default_rng(1).standard_normal(40 * SAMPLE_RATE).astype(np.float32)
SEVERAL_WINDOWS = np.concatenate([scale * NOISE_SAMPLES for scale in (1, 3, 9)])
