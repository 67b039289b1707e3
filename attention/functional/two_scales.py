"""StyleDrop's guidance with two scales (arXiv:2306.00983, eq. 3), for any prediction that guidance may mix."""

from __future__ import annotations

from torch import Tensor


def two_scale_guidance(tuned: Tensor, base: Tensor, unconditional: Tensor, style: float, text: float) -> Tensor:
    """`tuned` + `style` (`tuned` - `base`) + `text` (`base` - `unconditional`); all of one shape.

    `style` is the paper's lambda_A, `text` its lambda_B. Without a tuning (`tuned` is `base`) it is classifier-free
    guidance of scale 1 + `text`.
    """
    return tuned + style * (tuned - base) + text * (base - unconditional)


def with_style(guided: Tensor, tuned: Tensor, base: Tensor, style: float) -> Tensor:
    """The same, from `guided` = `base` + `text` (`base` - `unconditional`), on which others may have acted besides.

    Without a tuning (`tuned` is `base`) it is `guided` to the bit.
    """
    return guided + (1 + style) * (tuned - base)
