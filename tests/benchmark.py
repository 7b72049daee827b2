"""How fast the parts are, on this machine: python -m tests.benchmark [data_dir]"""

import sys
import time

import torch

from data.images import find_training_images
from data.patches import TrainingPatches
from utils import choose_device, device_name, set_up_cpu


def patches_a_second(patches, batch=128, batches=200):
    """Patches that the loader delivers a second, in batches of `batch`."""
    for step in range(10):
        patches.batch(step, batch)
    began = time.perf_counter()
    for step in range(batches):
        hr = patches.batch(step, batch)[1]
    hr.sum().item()  # wait for the device
    return batch * batches / (time.perf_counter() - began)


def main(data_dir="datasets"):
    set_up_cpu(0)
    device = choose_device("auto")
    print(device_name(device))
    began = time.perf_counter()
    patches = TrainingPatches(find_training_images(data_dir), (2, 3, 4), 48, seed=1, device=device)
    print(f"reading images: {time.perf_counter() - began:.1f} s")
    threads = torch.get_num_threads()
    for count in sorted({1, threads}):
        torch.set_num_threads(count)
        print(f"patches of 48x48, {count} CPU thread(s): {patches_a_second(patches):,.0f} a second")


if __name__ == "__main__":
    main(*sys.argv[1:])
