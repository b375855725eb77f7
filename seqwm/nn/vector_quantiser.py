"""Vector quantisation: a vector to the nearest of a codebook's, which follows the vectors that it is nearest to.

van den Oord, Vinyals and Kavukcuoglu, "Neural Discrete Representation Learning", 2017, appendix A.1: each code is the
mean of the vectors that chose it, with a decay, which is k-means on a stream of batches:

    N <- g N + (1 - g) n,    m <- g m + (1 - g) sum x,    e = m / N.

A code that hardly any vector chooses is moved to a vector of the batch that lies farthest from its own code, as long as
some lie far off: so what is rare gets a code, too. At first all codes are unused, and all vectors far. What has a code
near by keeps it, for those who read codes should not have to learn them anew.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

DECAY = 0.98
_FAR = 0.02
"""Squared distance from a vector to its code, in shares of the variance, above which it lacks one of its own."""
_UNUSED = (1 - DECAY) * DECAY**20
"""The decayed number of vectors under which a code counts as unused: one that is chosen once lasts for 20 batches."""


class VectorQuantiser(nn.Module):
    """Vectors to one of `size` codes.

    Args:
        size: codes.
        width: numbers of a vector, D.
    """

    points: Tensor
    chosen: Tensor
    sums: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        if size < 2:
            raise ValueError(f"size: found {size} codes, expected at least 2")
        self.size, self.width = size, width
        self.register_buffer("points", torch.randn(size, width))
        self.register_buffer("chosen", torch.zeros(size))
        self.register_buffer("sums", torch.zeros(size, width))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors [..., D] to points, float32 [..., D], and codes, int64 [...]; in training the codebook follows.

        No gradient passes.
        """
        flat = x.detach().float().flatten(0, -2)
        with torch.autocast(x.device.type, enabled=False):  # near codes differ by less than half precision tells
            distance = flat.square().sum(-1, keepdim=True) - 2 * flat @ self.points.T + self.points.square().sum(-1)
        nearest, code = distance.min(-1)
        points = self.points[code].view(x.shape)
        if self.training:
            self._follow(flat, code, nearest)
        return points, code.view(x.shape[:-1])

    @torch.no_grad()
    def _follow(self, x: Tensor, code: Tensor, distance: Tensor) -> None:
        """Move codes to the means of the vectors [M, D] that chose them, and unused ones to where codes are missing."""
        self.chosen.lerp_(torch.bincount(code, minlength=self.size).float(), 1 - DECAY)
        self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, code, x), 1 - DECAY)
        self.points.copy_(torch.where(self.chosen[:, None] > 0, self.sums / self.chosen[:, None], self.points))
        unused = (self.chosen < _UNUSED).nonzero()[:, 0]
        far = distance > _FAR * x.var(0, correction=0).sum()
        lacking, which = x[far].unique(dim=0, return_inverse=True)
        distance = distance.new_zeros(len(lacking)).scatter(0, which, distance[far])
        farthest = lacking[distance.topk(min(len(unused), len(lacking))).indices]
        codes = unused[: len(farthest)]
        self.points[codes], self.sums[codes], self.chosen[codes] = farthest, farthest * (1 - DECAY), 1 - DECAY
