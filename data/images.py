"""Image files and folders of them, and the luma on which Table 1 is measured."""

import warnings
from pathlib import Path

import numpy as np
import skimage
from PIL import Image

from utils import InputError

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
# The name under which the photographs inside scikit-image's package are a data set of their own.
BUNDLED = "skimage"
BUNDLED_TEST = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
BUNDLED_TRAIN = ("brick.png", "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png",
                 "moon.png", "page.png", "retina.jpg")


# The name of every 14th training image as a set, on which settings are chosen and then nothing trains.
HELD_OUT = "held_out"


def bundled_photographs(names):
    """Paths of the photographs `names` that scikit-image ships inside its package."""
    return [Path(skimage.__file__).parent / "data" / name for name in names]


def list_images(folder):
    """The image files directly in `folder`, sorted by name (empty where there is no such folder)."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS and p.is_file())


def read_image(path):
    """The image at `path` as uint8 RGB (H, W, 3); grey becomes R = G = B, alpha is dropped.

    Raises InputError, which names the path, where the file is no image or has more than 8 bits.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters becomes an error
            with Image.open(path) as image:
                if image.mode.startswith(("I", "F")) or any(";16" in str(tile[3]) for tile in image.tile):
                    raise InputError(f"{path}: has more than 8 bits a channel; convert it to 8")
                if "transparency" in image.info:
                    image = image.convert("RGBA")
                return np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be read as an image ({error})") from None


def find_training_images(data_dir, without_held_out=False):
    """Paths of the training images: data_dir/train291, a flat folder data_dir, or the bundled ones.

    without_held_out: but for those of the set HELD_OUT. Raises InputError, which names the layout expected.
    """
    if str(data_dir) == BUNDLED:
        return bundled_photographs(BUNDLED_TRAIN)
    paths = list_images(Path(data_dir) / "train291") or list_images(data_dir)
    if not paths:
        from data.download import download_command  # which imports this module

        raise InputError(
            f"{data_dir}: no training images; expected {data_dir}/train291/*.png|jpg, or images directly in "
            f"{data_dir}; to fetch them: {download_command('train291', data_dir)} (or try --data_dir {BUNDLED}: the "
            "pictures that scikit-image ships)"
        )
    return [path for i, path in enumerate(paths) if not (without_held_out and i % 14 == 13)]


def held_out_images(data_dir):
    """Paths of the set HELD_OUT: twenty of the 291 images; empty where there are fewer than 14."""
    kept = set(find_training_images(data_dir, without_held_out=True))
    return [path for path in find_training_images(data_dir) if path not in kept]


def luma(rgb):
    """Y of RGB, both 0..255: (..., H, W, 3) -> (..., H, W) in 16..235, float64, not rounded (BT.601)."""
    return 16 + np.asarray(rgb, dtype=np.float64) @ np.array([65.481, 128.553, 24.966]) / 255
