"""The shipped models "cauchy-rotation" and "cauchy-vp", its baseline, on correlated Cauchy data.

    python -m fastmsgm.recipes.cauchy_rotation --out runs/cauchy

A stopped run resumes when it is started again. Both models have the same perceptron, batches, steps
and averaging. The baseline is the paper's: variance-preserving diffusion, trained by sliced score
matching on the data with the rows of their mixing matrix normalised.
"""

from __future__ import annotations

import argparse

import torch

import fastmsgm
from fastmsgm.data import synthetic
from fastmsgm.nets import MLP


def main() -> None:
    """Train both models."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", default="runs/cauchy", help="folder of the checkpoints")
    parser.add_argument("--steps", type=int, default=40_000, help="optimizer steps of each model")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    data = synthetic.correlated_cauchy(100_000, 4)
    torch.manual_seed(0)
    prior = fastmsgm.RadialPrior.fit(data, pareto=0.01)
    rotation = fastmsgm.RotationModel.for_data(
        MLP(4, condition={"log_norm": 1}), fastmsgm.Rotation(), data, prior=prior
    )
    scale = synthetic.mixing(4).norm(dim=1)[None].float()
    baseline = fastmsgm.VPModel(MLP(4), fastmsgm.VP(), torch.zeros_like(scale), scale)
    for model, name in ((rotation, "cauchy-rotation"), (baseline, "cauchy-vp")):
        folder = f"{args.out}/{name}"
        fastmsgm.fit(model, data, steps=args.steps, batch_size=256, lr=1e-3, ema=0.999, out=folder)
        model.save(f"{folder}/fp16", dtype=torch.float16)


if __name__ == "__main__":
    main()
