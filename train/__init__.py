"""Recipes: one script per experiment, ``python -m fastmsgm.recipes.NAME``; see docs/recipes.md.

Of "Dale meets Langevin" (arXiv 2510.02730):

    mnist_gbm, kmnist_gbm, cifar10_gbm   GBM, the paper's training, and EDM, on images
    fashion_gbm, fashion_solvers         the shipped "fashion-gbm" and its fitted solvers
    spirals_gbm                          the same three models in the plane
    egd_digits                           exponentiated gradient and log-normal weights

Of MSGM (ICLR 2026):

    swiss_roll, cauchy, gaussian_cauchy  vectors: a rotation, the paper's method, and baselines
    lorenz63, lorenz96                   chaotic flows, the same models
    turbulence, turbulence16             vorticity fields of 32 x 32 and 16 x 16 points
    stocks                               daily returns, of neither paper
    cauchy_rotation                      the shipped "cauchy-rotation" and "cauchy-vp"

What they share is in ``recipe``; their models are in ``gbm_models``, ``image_recipe``,
``vector_models`` and ``recipe.baselines``.
"""
