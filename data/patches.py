"""Training patches, cut on the fly from images that are decoded once and kept in memory.

VDSR's preparation (Kim et al., CVPR 2016), without MATLAB or HDF5: every image at sizes 1, 0.7 and 0.5 (large
ones at 1 alone), cropped to a multiple of the scale; its LR image by bicubic down (and, for networks that want an
upscaled input, up again); patches at random places under a random flip and turn, scales mixed in a batch. RGB
images stay 8-bit throughout, as EDSR's data are: DIV2K takes 8 GB.
"""

import torch
from tqdm import tqdm

from bicubic import imresize
from data.images import luma, read_image
from utils import InputError, random_stream

SIZES = (1, 0.7, 0.5)
LARGE = 1000  # pixels of the shorter side: such an image holds patches enough


class TrainingPatches:
    """batch(step) gives the step's patches, a function of (seed, step) alone.

    paths: image files; those smaller than a patch are left out, which is told. scales: drawn at random for each patch;
    a single one where the network upscales. patch_size: of HR, in pixels, then a multiple of the scale. channels: 1
    (luma) or 3 (RGB). upscaled_input: the network's input has the HR size. disable: tqdm's, and of what is told.
    Raises InputError on an image that is unreadable, and where none is left.
    """

    def __init__(self, paths, scales, patch_size, seed, device="cpu", channels=1, upscaled_input=True, disable=None):
        self.seed, self.device, self.patch_size = seed, device, patch_size
        self.ratio = 1 if upscaled_input else scales[0]
        # RGB stays bytes; luma is kept in half precision, which is far finer than 8 bits.
        most, kept = (1, torch.float16) if channels == 1 else (255, torch.uint8)
        # All images one after the other; the table tells where one begins, its width, and its places for a patch.
        hrs, inputs, table = [], [], []
        hr_start = input_start = small = 0
        for path in tqdm(paths, desc="images", unit="", leave=False, disable=disable):
            rgb = read_image(path)
            if channels == 1:
                image = torch.from_numpy(luma(rgb)[None] / 255).to(device, torch.float32)
            else:
                image = torch.from_numpy(rgb).permute(2, 0, 1).contiguous().to(device)
            small += min(image.shape[1:]) < patch_size
            for size in SIZES if min(image.shape[1:]) < LARGE else (1,):
                hr = image if size == 1 else imresize(image, size).clamp(0, most)
                for scale in scales:
                    rows, columns = (n - n % scale for n in hr.shape[1:])
                    if min(rows, columns) < patch_size:
                        continue
                    x = imresize(hr[:, :rows, :columns], 1 / scale)
                    x = (imresize(x, scale) if upscaled_input else x).clamp(0, most)
                    rows, columns = (n - patch_size // self.ratio + 1 for n in x.shape[1:])
                    table.append((hr_start, hr.shape[2], input_start, x.shape[2], rows, columns))
                    inputs.append(x.flatten(1).to(kept))
                    input_start += x[0].numel()
                hrs.append(hr.flatten(1).to(kept))
                hr_start += hr[0].numel()
        if not table:
            raise InputError(f"{paths[0].parent}: no image is large enough for patches of {patch_size}x{patch_size}")
        if small and disable is None:
            tqdm.write(f"{small} of {len(paths)} training images are left out, smaller than {patch_size}x{patch_size}")
        self.hr, self.inputs = torch.cat(hrs, dim=1), torch.cat(inputs, dim=1)
        self.table = torch.tensor(table)
        # Every place where a patch can lie is as likely as any other.
        self.cumulative = (self.table[:, 4] * self.table[:, 5]).double().cumsum(0)

    def batch(self, step, size, shard=slice(None)):
        """The part `shard` of a step's patches: inputs (size, C, p, p) and HR (size, C, P, P), float32 in [0, 1]."""
        stream = random_stream(self.seed, "patches", step)
        place = torch.rand(3, size, generator=stream, dtype=torch.float64)
        turn = torch.randint(8, (size,), generator=stream)[shard]
        entry = torch.searchsorted(self.cumulative, place[0] * self.cumulative[-1], right=True)
        hr_start, hr_width, input_start, input_width, rows, columns = self.table[entry[shard]].T
        row, column = (place[1, shard] * rows).long(), (place[2, shard] * columns).long()
        x = self._cut(self.inputs, input_start, input_width, row, column, turn, self.patch_size // self.ratio)
        row, column = row * self.ratio, column * self.ratio
        return x, self._cut(self.hr, hr_start, hr_width, row, column, turn, self.patch_size)

    def _cut(self, images, start, width, row, column, turn, size):
        """Patches (n, C, size, size) with their top left at (row, column), flipped and turned.

        A flip or a quarter turn is a matter of the two steps through memory, so one gather does it all.
        """
        flip_rows, flip_columns, transpose = turn & 1, turn >> 1 & 1, turn >> 2 == 1
        first = start + (row + flip_rows * (size - 1)) * width + column + flip_columns * (size - 1)
        down, right = width * (1 - 2 * flip_rows), 1 - 2 * flip_columns
        down, right = torch.where(transpose, right, down), torch.where(transpose, down, right)
        # 32-bit indices, where they suffice, take half the time.
        places = torch.stack((first, down, right)).to(torch.int32 if images.shape[1] < 2**31 else torch.int64)
        if torch.device(self.device).type == "cuda":  # from pinned memory nothing has to wait for the GPU
            places = places.pin_memory()
        first, down, right = places.to(self.device, non_blocking=True)[..., None, None]
        steps = torch.arange(size, device=self.device, dtype=first.dtype)
        index = first + down * steps[:, None] + right * steps
        # Much quicker than images[:, index].
        patches = torch.stack([channel.index_select(0, index.flatten()).view_as(index) for channel in images], dim=1)
        return patches.float() / 255 if patches.dtype == torch.uint8 else patches.float()
