"""The shipped model "fashion-gbm": GBM with log-space preconditioning on the 60,000 Fashion-MNIST images.

python -m fastmsgm.recipes.fashion_gbm --out runs/fashion-gbm        (stop and start it as you like: it resumes)

Two runs: EDM's noise levels teach the detail first; then higher ones, where clothes get their shape, which is what the
first run's samples lack (noised to s = 0.2 and denoised, real images lose nothing; noised to s = 1.6 they do).
"""

from __future__ import annotations

import argparse

import torch

import fastmsgm
from fastmsgm import data
from fastmsgm.nets import UNet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="runs/fashion-gbm", help="folder of the checkpoint")
    parser.add_argument("--steps", type=int, default=10_000, help="optimizer steps of each run")
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
    fastmsgm.fit(model, images, steps=args.steps, batch_size=128, lr=2e-3, out=f"{args.out}/detail")
    fastmsgm.fit(model, images, steps=args.steps, batch_size=128, lr=1e-3, levels=(-0.5, 1.4), out=f"{args.out}/shape")
    model.save(f"{args.out}/fp16", dtype=torch.float16)


if __name__ == "__main__":
    main()
