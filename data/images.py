"""Image files and folders of them, and the luma on which Table 1 is measured."""

import re
from pathlib import Path

import numpy as np
import skimage
import torch
from PIL import Image, ImageOps, PngImagePlugin

from utils import InputError, refusing

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
BUNDLED = "skimage"  # the set of photographs inside scikit-image's package
BUNDLED_TEST = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
BUNDLED_TRAIN = ("brick.png", "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png",
                 "moon.png", "page.png", "retina.jpg")
HELD_OUT = "held_out"  # the set of every 14th training image, on which settings are chosen
_HELD_OUT = slice(13, None, 14)

# Pillow's guards against hostile files refuse large scans and long comments: 179 megapixels, 1 MB of text.
Image.MAX_IMAGE_PIXELS = 2**30  # it refuses twice as many
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY


def bundled_photographs(names):
    """Paths of the photographs `names` that scikit-image ships inside its package."""
    return [Path(skimage.__file__).parent / "data" / name for name in names]


def list_images(folder):
    """The image files directly in `folder`, sorted by name (empty where there is no such folder)."""
    files = Path(folder).glob("[!.]*")  # beside a.png macOS puts ._a.png, which is no image
    return sorted(path for path in files if path.suffix.lower() in EXTENSIONS and path.is_file())


def open_image(path):
    """The first frame of the image at `path`, upright, as a Pillow image. Raises InputError, which names the path.

    Its mode is L, LA, RGB or RGBA, or for 16-bit grey one that begins with I; info["icc_profile"], if any, is theirs.
    """
    with refusing(f"{path}: cannot be read as an image"), Image.open(path) as image:
        image.filename = ""  # by which Pillow 13.0 maps a plain grey TIFF to memory, and scrambles one that is turned
        raw = " ".join(str(tile[3]) for tile in image.tile)  # how Pillow will unpack it
        bits = getattr(image, "tag_v2", {}).get(258, (8,))  # TIFF's BitsPerSample
        grey = image.mode.startswith("I;16") or image.mode == "I" and "I;16B" in raw
        if not grey and (image.mode in ("I", "F") or re.search(r";16[BLN]", raw) or max(bits) > 8):
            raise InputError(f"{path}: has neither 8 bits a channel nor plain grey of 16; convert it to 8")
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode in ("CMYK", "LAB"):
            image.info.pop("icc_profile", None)
        mode = ("L" if image.mode in ("1", "L", "LA", "La") else "RGB") + "A" * image.has_transparency_data
        return image if image.mode == mode or image.mode.startswith("I") else image.convert(mode)


def read_image(path):
    """The image at `path` as uint8 RGB (H, W, 3), alpha dropped. Raises InputError, of more than 8 bits, too."""
    image = open_image(path)
    if image.mode.startswith("I"):
        raise InputError(f"{path}: has more than 8 bits a channel; convert it to 8")
    return np.array(image.convert("RGB"))


def find_training_images(data_dir, without_held_out=False):
    """Paths of the training images: of data_dir/train291, else data_dir itself, else DIV2K's; of "skimage" its own.

    without_held_out: but for those of the set HELD_OUT. Raises InputError where there are none.
    """
    if str(data_dir) == BUNDLED:
        return bundled_photographs(BUNDLED_TRAIN)
    folders = (Path(data_dir, name) for name in ("train291", "", "DIV2K/DIV2K_train_HR"))
    paths = next(filter(None, map(list_images, folders)), None)
    if not paths:
        raise InputError(f"{data_dir}: no training images there or in {data_dir}/train291; to fetch them: "
                         f"python -m data.download train291 --to {data_dir}")
    if without_held_out:
        del paths[_HELD_OUT]
    return paths


def held_out_images(data_dir):
    """Paths of the set HELD_OUT: twenty of the 291 images. Raises InputError where there are fewer than 14."""
    paths = find_training_images(data_dir)
    if len(paths) < 14:
        raise InputError(f"{data_dir}: {HELD_OUT} is every 14th training image, and there are {len(paths)}")
    return paths[_HELD_OUT]


def luma(rgb):
    """Y in 16..235 (BT.601, not rounded) of RGB in 0..255, (..., 3) -> (...): a tensor of a tensor, else float64."""
    rgb = rgb if isinstance(rgb, torch.Tensor) else np.asarray(rgb, dtype=np.float64)
    return 16 + (65.481 * rgb[..., 0] + 128.553 * rgb[..., 1] + 24.966 * rgb[..., 2]) / 255
