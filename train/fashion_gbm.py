"""The shipped model "fashion-gbm": GBM with log-space preconditioning on Fashion-MNIST.

    python -m fastmsgm.recipes.fashion_gbm --out runs/fashion-gbm [--smoke]

"Dale meets Langevin" (arXiv 2510.02730), the experiment on Fashion-MNIST. Expected figure: a
Frechet distance of 1.3 with 8 network calls, in the features of the bench's classifier
(docs/solvers.md; not FID). Hours on 2 cores: 6, estimated from the time of a step. A smoke run
trains small networks on random images.

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


def main(arguments: list[str] | None = None) -> None:
    """Train the model; the arguments are those of the process, unless given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", help="folder of the checkpoint, default runs/fashion-gbm")
    parser.add_argument("--steps", type=int, default=10_000, help="optimizer steps of each run")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads")
    parser.add_argument("--smoke", action="store_true", help="two steps, to see that it runs")
    args = parser.parse_args(arguments)
    folder = args.out or f"runs/fashion-gbm{'-smoke' if args.smoke else ''}"
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    steps, batch, width, deep = (2, 8, 16, 32) if args.smoke else (args.steps, 128, 64, 128)
    images, labels = (
        (torch.rand(64, 1, 28, 28), torch.arange(64) % 10)
        if args.smoke
        else data.fashion_mnist(labels=True)
    )
    build = functools.partial(
        fastmsgm.GBMModel.for_data,
        process=fastmsgm.GBM(sigma=10.0),
        data=images,
        offset=1.0,
        bounds=(0.0, 1.0),
        precision="bf16",
    )
    small = UNet(channels=1, width=width, deep=deep, blocks=1, deep_blocks=2)
    fit = functools.partial(fastmsgm.fit, steps=steps, batch_size=batch)
    fit(build(small), images, lr=2e-3, out=f"{folder}/detail")
    fit(build(small), images, lr=1e-3, loss=HIGH_NOISE, out=f"{folder}/shape")
    net = UNet(channels=1, width=width, deep=deep, blocks=1, deep_blocks=3, classes=10)
    net.load_state_dict(small.state_dict(), strict=False)
    conditional = build(net, labels=labels, classes=10)
    out = f"{folder}/classes"
    fit(conditional, images, labels, lr=1e-3, loss=HIGH_NOISE, seed=1, out=out)
    short = {"steps": min(steps, 3_000), "batch_size": min(batch, 64), "warmup": 100}
    out = f"{folder}/guidance"
    fit(conditional, images, labels, lr=3e-4, loss=HIGH_NOISE, seed=7, drop=0.2, out=out, **short)
    conditional.save(f"{folder}/fp16", dtype=torch.float16)


if __name__ == "__main__":
    main()
