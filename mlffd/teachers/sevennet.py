# SPDX-License-Identifier: MIT
"""SevenNet foundation models whose weights come inside the `sevenn` package."""

import warnings
from functools import partial

from mlffd.errors import TeacherError

LICENCE = "MIT"
MODALS = {"7net-0": (), "7net-mf-0": ("R2SCAN", "PBE")}


def load(model, device="cpu", modal=None):
    """SevenNet `model` on `device`; a multi-fidelity model needs `modal`, the level of theory of its head."""
    heads = MODALS[model]
    if modal not in (heads or (None,)):
        wanted = f'modal = "{heads[0]}" or "{heads[1]}"' if heads else "no modal"
        raise TeacherError(f"teacher {model} takes {wanted}, not {modal!r}")
    sevenn, build = _import_sevenn(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about accelerators that are optional
        calculator = build(model, modal=modal, device=device)
    settings = {"modal": modal} if modal else {}
    return calculator, f"sevenn {sevenn.__version__}", LICENCE, settings


def _import_sevenn(model):
    try:
        import sevenn
        from sevenn.calculator import SevenNetCalculator
    except ImportError as error:
        raise TeacherError(
            f'teacher {model} needs SevenNet ({error}): install it with pip install "mlffd[sevenn]"'
        ) from error
    return sevenn, SevenNetCalculator


LOADERS = {model: partial(load, model) for model in MODALS}
