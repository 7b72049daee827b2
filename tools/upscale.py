"""Upscaling one's own images (distillation.py --images), whatever their size, to PNG files.

A network on luma (VDSR) gives the luma, bicubic the chroma; a network on RGB (EDSR) gives all three. Alpha is by
bicubic. The output is always a PNG of the input's name, so that what the network restored is not compressed away
again. It has what the input has: grey or RGB (palettes become that), alpha, 8 bits or grey's 16, the ICC profile.
EXIF's orientation is carried out; the rest of EXIF and all but the first of several frames are not kept.

An image is upscaled in tiles and encoded band by band: neither it nor its upscaled one is ever held in floating
point, nor the upscaled one as a whole.
"""

import io
import math
import os
import re
import struct
import tempfile
import warnings
import zlib
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from bicubic import imresize
from data.benchmark import choose_scales
from data.images import EXTENSIONS, list_images
from models.load import load_model
from models.custom import custom_network
from models.tiles import reach, self_ensemble, widest
from utils import InputError, choose_device, write_atomically

# Values in the largest feature map of a tile: 128 MB in float32, of which the CPU holds about four at a time.
_LARGEST = 2**25
# Luma of RGB, all in [0, 1]: data.images.luma over 255. Grey g has luma (16 + 219 g) / 255.
_LUMA = torch.tensor([65.481, 128.553, 24.966]) / 255
_ORIENTATION = 0x0112  # EXIF's tag


# ---- reading ---------------------------------------------------------------------------------------


@contextmanager
def _opened(path):
    """The image file, its header read; all that Pillow stumbles over becomes an InputError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters becomes an error
            with Image.open(path) as image:
                _check_depth(image, path)
                yield image
    except (InputError, MemoryError):
        raise
    except Exception as error:  # of many kinds where a file is damaged
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: cannot be read as an image ({reason})") from None


def _check_depth(image, path):
    """Raise InputError where the opened image has more bits than can be kept: 8, or 16 in grey alone."""
    raw = " ".join(str(tile[3]) for tile in image.tile)  # how Pillow will unpack it
    bits = getattr(image, "tag_v2", {}).get(258, (8,))  # TIFF's BitsPerSample
    if image.mode.startswith("I;16") or image.mode == "I" and "I;16B" in raw:
        return
    if image.mode in ("I", "F"):
        raise InputError(f"{path}: has signed, 32-bit or floating-point values; convert it to 8 or 16 bits")
    if re.search(r";16[BLN]", raw) or max(bits) > 8:
        raise InputError(f"{path}: has 16 bits a channel, which Pillow reads in grey without alpha only; "
                         "convert it to 8")


def read_original(path):
    """The image at `path` as (pixels (H, W, C), ICC profile or None), turned upright.

    C is 1 (grey), 2 (grey and alpha), 3 (RGB) or 4 (RGB and alpha); uint8, or uint16 for 16-bit grey. Raises
    InputError, which names the path.
    """
    with _opened(path) as image:
        image.load()
        profile = None if image.mode in ("CMYK", "LAB") else image.info.get("icc_profile")  # those become RGB
        orientation = image.getexif().get(_ORIENTATION)
        if image.mode.startswith("I"):
            pixels = np.asarray(image).astype(np.uint16)
        else:
            grey = image.mode in ("1", "L", "LA", "La")
            pixels = np.asarray(image.convert(("L" if grey else "RGB") + "A" * image.has_transparency_data))
    return upright(pixels.reshape(*pixels.shape[:2], -1), orientation), profile


def upright(pixels, orientation):
    """Pixels (H, W, C) as EXIF's orientation, 1 to 8, says to show them; others are taken for 1."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


# ---- upscaling -------------------------------------------------------------------------------------


def _luma(rgb):
    """(1, h, w) of (3, h, w), both in [0, 1]."""
    return 16 / 255 + torch.einsum("c,chw->hw", _LUMA.to(rgb.device), rgb)[None]


@torch.inference_mode()
def upscale_tile(model, tile, scale, ensemble=False):
    """(C, scale * h, scale * w) of a tile (C, h, w), both in [0, 1], the result not clipped; C as in read_original.

    Chroma by bicubic and luma by the network Y = S(x): in YCbCr (BT.601) every channel of RGB has the same
    share of luma, 255/219 Y, so that it is bicubic's RGB and 255/219 of what the network changes in luma.
    """
    run = partial(self_ensemble, model) if ensemble else model
    colours = 3 if len(tile) > 2 else 1
    rgb, alpha = tile[:colours].expand(3, -1, -1), imresize(tile[colours:], scale)  # alpha: of no or one channel
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        if model.channels == 3:
            result = run(rgb[None])[0]
        else:
            result = imresize(rgb, scale)
            y = _luma(result)
            result = result + 255 / 219 * (run((y if model.upscaled_input else _luma(rgb))[None])[0] - y)
    if colours == 1:
        result = (_luma(result) * 255 - 16) / 219
    return torch.cat((result, alpha))


def _tiling(model, scale, largest):
    """(halo, side) of tiles, in input pixels: what they need on every side to show no seam, and their own."""
    halo = math.ceil(reach(model) / (scale if model.upscaled_input else 1)) + 2  # bicubic's support is 2
    whole = math.isqrt(largest // (widest(model) * scale**2))
    return halo, max(whole - 2 * halo, halo)


def _edges(length, side, halo):
    """Where tiles begin and end: nearly equal, at most `side` each, or one where their halo would cover all."""
    count = 1 if length <= side + 2 * halo else math.ceil(length / side)
    return [length * i // count for i in range(count + 1)]


def upscale_bands(model, pixels, scale, device, ensemble=False, largest=_LARGEST, progress=lambda done: None):
    """Yield the upscaled image from top to bottom, in bands (rows, scale * W, C) of the type of `pixels` (H, W, C).

    pixels: see read_original. ensemble: the network's mean over eight flips and turns. largest: values in a
    feature map. progress: called with the number of input pixels that are done, after each tile.
    """
    rows, columns, channels = pixels.shape
    peak = np.iinfo(pixels.dtype).max
    halo, side = _tiling(model, scale, largest)
    for top, bottom in pairwise(_edges(rows, side, halo)):
        band = np.empty(((bottom - top) * scale, columns * scale, channels), pixels.dtype)
        for left, right in pairwise(_edges(columns, side, halo)):
            above, before = max(top - halo, 0), max(left - halo, 0)
            tile = pixels[above:bottom + halo, before:right + halo].transpose(2, 0, 1)
            tile = torch.from_numpy(np.ascontiguousarray(tile, np.float32)).to(device) / peak
            result = upscale_tile(model, tile, scale, ensemble)
            result = result[:, (top - above) * scale:(bottom - above) * scale,
                            (left - before) * scale:(right - before) * scale]
            result = (peak * result.clamp(0, 1)).round().permute(1, 2, 0)
            band[:, left * scale:right * scale] = result.cpu().numpy()
            progress((bottom - top) * (right - left))
        yield band


# ---- writing ---------------------------------------------------------------------------------------


def encode_png(bands, rows, columns, channels, bits, profile=None):
    """The bytes of a PNG of that size, from bands as of upscale_bands.

    Pillow would have to hold the whole image, in 4 bytes a pixel. Each row is stored as its difference from
    the one above (PNG's filter 2), which on upscaled photographs is within a few percent of choosing the best
    filter for every row.
    """
    file = io.BytesIO(b"\x89PNG\r\n\x1a\n")
    file.seek(0, io.SEEK_END)

    def chunk(kind, content):
        checksum = zlib.crc32(content, zlib.crc32(kind))
        file.write(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum))

    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, bits, colour_type, 0, 0, 0))
    if profile:
        chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(profile))
    stream = zlib.compressobj()
    above = np.zeros((1, columns * channels * bits // 8), np.uint8)
    for band in bands:
        content = band.astype(band.dtype.newbyteorder(">"), copy=False).reshape(len(band), -1).view(np.uint8)
        filtered = np.full((len(band), 1 + content.shape[1]), 2, np.uint8)
        filtered[:1, 1:] = content[:1] - above
        filtered[1:, 1:] = content[1:] - content[:-1]
        chunk(b"IDAT", stream.compress(filtered))
        above = content[-1:]
    chunk(b"IDAT", stream.flush())
    chunk(b"IEND", b"")
    return file.getbuffer()


# ---- files -----------------------------------------------------------------------------------------


def find_inputs(given):
    """The image files that `given` names, each once: files, and those directly in folders. Raises InputError."""
    paths = []
    for name in given:
        place = Path(name)
        if name and place.is_dir():
            found = list_images(place)
            if not found:
                raise InputError(f"--images {name}: no image directly in it ({', '.join(sorted(EXTENSIONS))})")
            paths += found
        elif not (name and place.is_file()):
            raise InputError(f"--images {name}: no such image or folder")
        elif place.suffix.lower() not in EXTENSIONS:
            raise InputError(f"--images {name}: is none of {', '.join(sorted(EXTENSIONS))}")
        else:
            paths.append(place)
    return list({os.path.abspath(path): path for path in paths}.values())


def choose_outputs(paths, folder):
    """{output path: input path}. Raises InputError where two would share an output, or it is an input or a folder."""
    inputs, outputs = {path.resolve() for path in paths}, {}
    for path in paths:
        output = Path(folder) / f"{path.stem}.png"
        if output in outputs:
            raise InputError(f"--save_images {folder}: {outputs[output]} and {path} would both become {output}; "
                             "rename one, or give them folders of their own")
        if output.resolve() in inputs:
            raise InputError(f"--save_images {folder}: {output} is itself to be upscaled; give another folder")
        if output.is_dir():
            raise InputError(f"--save_images {folder}: {output} is a folder")
        outputs[output] = path
    return outputs


def _make_folder(folder):
    """Make the folder, and try whether it can be written to. Raises InputError."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"--save_images {folder}: cannot be written to ({error.strerror})") from None


def _count_pixels(path):
    with _opened(path) as image:
        return image.width * image.height


def upscale_images(model, paths, folder, scale, device, ensemble=False):
    """Upscale the image files `paths` by the network to folder/NAME.png.

    Raises InputError: before it writes anything where a file's header or the folder is unusable; at the end
    where the rest of a file turned out to be, with the other images done.
    """
    outputs = choose_outputs(paths, folder)
    total = sum(_count_pixels(path) for path in paths)
    _make_folder(folder)
    failed = []
    with tqdm(total=total, desc=f"x{scale}", unit="pixel", unit_scale=True, leave=False, disable=None) as bar:
        for output, path in outputs.items():
            try:
                pixels, profile = read_original(path)
            except InputError as error:
                failed.append(str(error))
                continue
            rows, columns, channels = pixels.shape
            bands = upscale_bands(model, pixels, scale, device, ensemble, progress=bar.update)
            write_atomically(output, encode_png(
                bands, scale * rows, scale * columns, channels, 8 * pixels.itemsize, profile))
    if failed:
        raise InputError(f"{'; '.join(failed)} (of {len(paths)} images {len(paths) - len(failed)} were upscaled)")


def upscale_command(args):
    """What distillation.py does with --images. Raises InputError on flags that do not go together."""
    if not (args.images and args.save_images):
        raise InputError("--images: say with --save_images in which folder to put the upscaled images"
                         if args.images else "--save_images: say which images to upscale with --images")
    if not (args.test_only and args.student):
        raise InputError("--images: goes with --test_only, and --student names the network that upscales")
    args.device = choose_device(args.device)
    if args.threads:  # and no set_up_cpu: memory that is kept would be twice as much for large images
        torch.set_num_threads(args.threads)
    paths = find_inputs(args.images)
    model = (custom_network(args.model, "student", args.student).to(args.device) if args.model
             else load_model(args.student, args.device, args.res_scale))
    scales = choose_scales(args.scale, model, args.student)
    if len(scales) > 1:
        raise InputError(f"--scale 0: {args.student} upscales by {', '.join(map(str, scales))}; say by which")
    upscale_images(model, paths, args.save_images, scales[0], args.device, args.self_ensemble)
    print(f"{len(paths)} image{'s' * (len(paths) > 1)} upscaled by {scales[0]}: {args.save_images}")
