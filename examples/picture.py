"""What every example needs: a picture as a network's input, and its answer in words. Pillow and numpy."""

import numpy as np
from PIL import Image


def read(path: str, rule: dict) -> np.ndarray:
    """A picture by the rule in an exported file's facts: the shorter side resized, the centre cropped, normalised."""
    image, size = Image.open(path).convert("RGB"), rule["size"]
    scaled = [int(rule["resize"] * side / min(image.size)) for side in image.size]
    image = image.resize(scaled, Image.Resampling[rule["interpolation"].upper()])
    left, top = (round((side - size) / 2) for side in image.size)
    pixels = np.asarray(image.crop((left, top, left + size, top + size)), np.float32) / 255
    channels = ((pixels - rule["mean"]) / rule["std"]).transpose(2, 0, 1)[None]
    return np.ascontiguousarray(channels, np.float32)  # ExecuTorch looks at the bytes alone


def say(logits: np.ndarray, classes: list[str]) -> None:
    chances = np.exp(logits - logits.max())
    best = chances.argmax()
    print(f"{100 * chances[best] / chances.sum():.1f} % {classes[best]}")
