"""Shifted and mirrored images, computed where the images are from numbers each member's generator draws."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.nn.functional import pad

from theory.types import InvalidInput


@dataclass(frozen=True)
class Augmentation:
    """A random crop of the image padded with ``padding`` zeros on every side, mirrored half the time.

    The usual one for CIFAR by default. Raises: InvalidInput for a negative padding, or if it does nothing.
    """

    padding: int = 4
    mirror: bool = True

    def __post_init__(self) -> None:
        if self.padding < 0 or not (self.padding or self.mirror):
            raise InvalidInput(f"padding is {self.padding}; it must be positive, or 0 and mirror True")

    def draw(self, examples: int, generator: Generator) -> Int[Tensor, "examples 3"]:
        """Of every example: rows and columns the crop is moved by, from 0, and whether it is mirrored."""
        shifts = torch.randint(0, 2 * self.padding + 1, (examples, 2), generator=generator)
        mirrored = torch.randint(0, 2 if self.mirror else 1, (examples, 1), generator=generator)
        return torch.cat([shifts, mirrored], dim=1)

    def apply(
        self, x: Float[Tensor, "K b d"], drawn: Int[Tensor, "K b 3"], *, shape: tuple[int, ...]
    ) -> Float[Tensor, "K b d"]:
        """The augmented images, flattened; ``shape`` is (channels, height, width)."""
        channels, height, width = shape
        images = pad(x.reshape(-1, *shape), [self.padding] * 4)
        down, right, mirrored = drawn.reshape(-1, 3).T[..., None]
        rows = down + torch.arange(height, device=x.device)
        columns = torch.arange(width, device=x.device)
        columns = right + torch.where(mirrored > 0, columns.flip(0), columns)
        example = torch.arange(len(images), device=x.device)
        channel = torch.arange(channels, device=x.device)
        found = images[
            example[:, None, None, None],
            channel[:, None, None],
            rows[:, None, :, None],
            columns[:, None, None],
        ]
        return found.reshape(x.shape)
