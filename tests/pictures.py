"""Small image files of every kind that image collections hold, good and bad."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def scene(width: int = 50, height: int = 40, seed: int = 0) -> Image.Image:
    """A smooth colour image: neighbouring pixels are alike, as in photographs."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, **options)
    return file.getvalue()


def odd_images(folder: Path) -> dict[str, Path]:
    """What ImageNet and its like really hold, though every file is called .JPEG."""
    folder.mkdir(parents=True, exist_ok=True)
    image = scene()
    levels = np.linspace(0, 65535, 50 * 40).reshape(40, 50).astype(np.uint16)
    files = {
        "plain": jpeg(image),
        "progressive": jpeg(image, progressive=True),
        "grey": jpeg(image.convert("L")),
        "cmyk": jpeg(image.convert("CMYK")),
        "broken_exif": jpeg(image, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xfe" * 40),
        "rotated_by_exif": jpeg(image, exif=_orientation(6)),
    }
    pngs = {
        "png": image,
        "palette": image.convert("P"),
        "transparent": image.convert("RGBA"),
        "sixteen_bits": Image.fromarray(levels),
    }
    for name, content in files.items():
        (folder / f"{name}.JPEG").write_bytes(content)
    for name, content in pngs.items():
        content.save(folder / f"{name}.JPEG", format="PNG")
    return {name: folder / f"{name}.JPEG" for name in (*files, *pngs)}


def _orientation(turn: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = turn
    return exif.tobytes()


def bad_images(folder: Path) -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    whole = jpeg(scene())
    png = io.BytesIO()
    scene().save(png, "PNG")
    files = {
        "truncated": whole[: len(whole) // 2],
        "header_only": whole[:20],
        "empty": b"",
        "web_page": b"<!DOCTYPE html><html></html>",
        "broken_png": png.getvalue()[:60] + b"\0" * 60,
    }
    for name, content in files.items():
        (folder / f"{name}.JPEG").write_bytes(content)
    return {name: folder / f"{name}.JPEG" for name in files}


def image_folder(root: Path, train: int = 6, val: int = 5, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """train/ and val/ with so many images per class."""
    for part, count in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.JPEG").write_bytes(jpeg(scene(seed=100 * label + number)))
    return root
