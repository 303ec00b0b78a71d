"""The shipped model "fashion-gbm": GBM with log-space preconditioning on Fashion-MNIST.

    python -m fastmsgm.recipes.fashion_gbm --out runs/fashion-gbm

It trains on the 60,000 images in four runs; a stopped run resumes when it is started again. The
first run has EDM's noise levels and learns detail. The second has higher noise levels and learns
the shape of clothes. The network of the third is class-conditional and has one more block. Both
additions start as zero, so training continues where the second run ended. The fourth drops a fifth
of the class labels, so that the model can be sampled with guidance.

The shipped weights differ in three points. In their first two runs every pixel had its own scale,
which trains a little worse, the new block of the third run started with small random biases, and
the null class of the fourth as the mean of the classes.
"""

from __future__ import annotations

import argparse
import functools

import torch

import fastmsgm
from fastmsgm import data
from fastmsgm.gbm import DenoisingLoss
from fastmsgm.nets import UNet

HIGH_NOISE = DenoisingLoss(p_mean=-0.5, p_std=1.4)


def main() -> None:
    """Train the model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", default="runs/fashion-gbm", help="folder of the checkpoint")
    parser.add_argument("--steps", type=int, default=10_000, help="optimizer steps of each run")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    images, labels = data.fashion_mnist(labels=True)

    build = functools.partial(
        fastmsgm.GBMModel.for_data,
        process=fastmsgm.GBM(sigma=10.0),
        data=images,
        offset=1.0,
        bounds=(0.0, 1.0),
        precision="bf16",
    )
    small = UNet(channels=1, width=64, deep=128, blocks=1, deep_blocks=2)
    fit = functools.partial(fastmsgm.fit, steps=args.steps, batch_size=128)
    fit(build(small), images, lr=2e-3, out=f"{args.out}/detail")
    fit(build(small), images, lr=1e-3, loss=HIGH_NOISE, out=f"{args.out}/shape")
    net = UNet(channels=1, width=64, deep=128, blocks=1, deep_blocks=3, classes=10)
    net.load_state_dict(small.state_dict(), strict=False)
    conditional = build(net, labels=labels, classes=10)
    out = f"{args.out}/classes"
    fit(conditional, images, labels, lr=1e-3, loss=HIGH_NOISE, seed=1, out=out)
    short = {"steps": min(args.steps, 3_000), "batch_size": 64, "warmup": 100}
    out = f"{args.out}/guidance"
    fit(conditional, images, labels, lr=3e-4, loss=HIGH_NOISE, seed=7, drop=0.2, out=out, **short)
    conditional.save(f"{args.out}/fp16", dtype=torch.float16)


if __name__ == "__main__":
    main()
