"""The shipped model "cauchy-rotation": isotropic rotation on the correlated Cauchy set in 4 dimensions.

python -m fastmsgm.recipes.cauchy_rotation --out runs/cauchy-rotation        (stop and start it as you like: it resumes)
"""

from __future__ import annotations

import argparse

import torch

import fastmsgm
from fastmsgm import simulated
from fastmsgm.nets import MLP


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="runs/cauchy-rotation", help="folder of the checkpoint")
    parser.add_argument("--steps", type=int, default=60_000, help="optimizer steps")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    data = simulated.correlated_cauchy(100_000, 4)
    prior = fastmsgm.RadialPrior.fit(data, pareto=0.01)
    model = fastmsgm.RotationModel.for_data(MLP(4, conditions=2), fastmsgm.Rotation(), data, prior=prior)
    fastmsgm.fit(model, data, steps=args.steps, batch_size=256, lr=1e-3, ema=0.999, out=args.out)
    model.save(args.out)


if __name__ == "__main__":
    main()
