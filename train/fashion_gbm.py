"""The shipped model "fashion-gbm": GBM with log-space preconditioning on the 60,000 Fashion-MNIST images.

python -m fastmsgm.recipes.fashion_gbm --out runs/fashion-gbm        (stop and start it as you like: it resumes)

Three runs, about an hour and three quarters of one core each: EDM's noise levels teach the detail first; then higher
ones, where clothes get their shape, which is what the first run's samples lack (noised to s = 0.2 and denoised, real
images lose nothing; noised to s = 1.6 they do). The third goes on with new noise.
"""

from __future__ import annotations

import argparse

import torch

import fastmsgm
from fastmsgm import data
from fastmsgm.nets import UNet

RUNS = (  # name, optimizer steps, learning rate, noise levels, seed
    ("detail", 10_000, 2e-3, None, 0),
    ("shape", 10_000, 1e-3, (-0.5, 1.4), 0),
    ("finish", 9_500, 1.5e-3, (-0.5, 1.4), 1),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="runs/fashion-gbm", help="folder of the checkpoint")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    images = data.fashion_mnist()
    net = UNet(channels=1, width=64, deep=128, blocks=1)
    model = fastmsgm.GBMModel.for_data(
        net, fastmsgm.GBM(sigma=10.0), images, offset=1.0, bounds=(0.0, 1.0), precision="bf16"
    )
    for name, steps, lr, levels, seed in RUNS:
        folder = f"{args.out}/{name}"
        fastmsgm.fit(model, images, steps=steps, batch_size=128, lr=lr, levels=levels, seed=seed, out=folder)
    model.save(f"{args.out}/fp16", dtype=torch.float16)


if __name__ == "__main__":
    main()
