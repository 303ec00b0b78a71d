"""The shipped model "fashion-gbm": GBM with log-space preconditioning on the 60,000 Fashion-MNIST images.

python -m fastmsgm.recipes.fashion_gbm --out runs/fashion-gbm        (stop and start it as you like: it resumes)

Three runs. EDM's noise levels teach the detail; then higher ones, where clothes get their shape. The third run's
network has one more block and is told the class; both begin as zero, so that it goes on where the second run ended.
(In the first two runs of the shipped weights every pixel had a scale of its own, which teaches a little less, and the
third began with small random biases in the new block.)
"""

from __future__ import annotations

import argparse
import functools

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
    images, labels = data.fashion_mnist(labels=True)

    model = functools.partial(
        fastmsgm.GBMModel.for_data, process=fastmsgm.GBM(sigma=10.0), data=images, offset=1.0, bounds=(0.0, 1.0),
        precision="bf16",
    )  # fmt: skip
    small = UNet(channels=1, width=64, deep=128, blocks=1, deep_blocks=2)
    run = functools.partial(fastmsgm.fit, steps=args.steps, batch_size=128)
    run(model(small), images, lr=2e-3, out=f"{args.out}/detail")
    run(model(small), images, lr=1e-3, levels=(-0.5, 1.4), out=f"{args.out}/shape")
    net = UNet(channels=1, width=64, deep=128, blocks=1, deep_blocks=3, classes=10)
    net.load_state_dict(small.state_dict(), strict=False)
    told = model(net, labels=labels, classes=10)
    run(told, images, labels, lr=1e-3, levels=(-0.5, 1.4), seed=1, out=f"{args.out}/classes")
    told.save(f"{args.out}/fp16", dtype=torch.float16)


if __name__ == "__main__":
    main()
