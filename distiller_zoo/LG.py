"""LG: Li et al., "Locality Guidance for Improving Vision Transformers on Tiny Datasets", ECCV 2022, arXiv 2207.10026.

Numbers of the three comparisons checked against `inter_distill_loss` of the authors' tiny-transformers, at maps of one
size. Deviations: where the sizes differ, the larger map is average-pooled, as in the other feature methods here; how
the authors match them was not seen. Their code drops the term that compares logits as soon as there is guidance, here
-a adds it. That term, `logit_distill_loss`, is the KL of `DistillKL` divided by the number of classes C: their weight w
is -a w/C. They train the student at 224×224 and name no blocks of PiT; those of DeiT, which has as many, are taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from .AT import Attention
from .base import Distiller, Needs, Shapes, Step, register
from .SP import Similarity
from .spatial import match_size

__all__ = ["LocalityGuidance", "guidance_loss"]

# blocks, from 0, of DeiT and PiT, PVT and T2T-ViT by their number of blocks
PUBLISHED_BLOCKS = {12: (0, 6, 11), 8: (0, 3, 7), 7: (0, 3, 6)}


def guidance_loss(f_s: Tensor, f_t: Tensor, transform: Literal["linear", "attention", "similarity"]) -> Tensor:
    """Distance of a student's map from a teacher's, a scalar.

    Args:
        f_s: (B, C_s, H_s, W_s), receives the gradient.
        f_t: (B, C_t, H_t, W_t); the larger map is pooled to the size of the other.
        transform: `linear` compares the maps as they are, with C_s = C_t, by mean squared error; `attention` and
            `similarity` compare what the methods of these names make of them.
    """
    if transform == "similarity":
        return Similarity().similarity_loss(f_s, f_t)
    if transform == "attention":
        return Attention().at_loss(f_s, f_t)
    return F.mse_loss(*match_size(f_s, f_t))


def chosen_blocks(text: str, blocks: int, stages: int) -> tuple[int, ...]:
    """The student's blocks, from 0, that the teacher's stages guide.

    Args:
        text: their numbers, or `auto` for the published ones, and where there are none, evenly spaced ones.
        blocks: number of the student's blocks.
        stages: number of the teacher's stages.

    Raises:
        ValueError: the text is no list of such numbers, or of another length than there are stages.
    """
    if text == "auto":
        if stages == 3 and blocks in PUBLISHED_BLOCKS:
            return PUBLISHED_BLOCKS[blocks]
        return tuple(i * (blocks - 1) // max(stages - 1, 1) for i in range(stages))
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) < blocks for word in words):
        raise ValueError(f"--blocks {text} must be numbers from 0 to {blocks - 1}, or auto")
    if len(words) != stages:
        raise ValueError(f"--blocks {text} names {len(words)} blocks for the teacher's {stages} stages")
    return tuple(map(int, words))


@register("lg", paper="Locality Guidance for Vision Transformers on Tiny Datasets, ECCV 2022", r=1.0, a=0.0, b=2.5)
class LocalityGuidance(Distiller):
    """-a weighs the KL term, -b the distance of the student's blocks (B, C_s, h, w) from the teacher's stages.

    The teacher is a network of convolutions, the student a transformer, though any pair will do.

    Args:
        shapes: sizes of the networks and the data set.
        guidance: linear puts a 1×1 convolution behind each block, attention and similarity compare such maps
        blocks: student's blocks, from 0, one for each stage of the teacher, such as 0,6,11; auto: the published ones

    Raises:
        ValueError: blocks names none, or too few or too many.
    """

    needs = Needs(features="mid")

    def __init__(
        self,
        shapes: Shapes,
        guidance: Literal["linear", "attention", "similarity"] = "linear",
        blocks: str = "auto",
    ):
        super().__init__(shapes)
        self.guidance = guidance
        student, teacher = shapes.student[1:-1], shapes.teacher[1:-1]
        self.blocks = chosen_blocks(blocks, len(student), len(teacher))
        self.project = nn.ModuleList(
            nn.Conv2d(student[i][1], shape[1], 1) if guidance == "linear" else nn.Identity()
            for i, shape in zip(self.blocks, teacher, strict=True)
        )

    def kd(self, step: Step) -> Tensor:
        """The distances of all pairs, summed."""
        chosen: Sequence[Tensor] = [step.student.features[1 + block] for block in self.blocks]
        pairs = zip(self.project, chosen, step.teacher.features[1:-1], strict=True)
        return sum(guidance_loss(project(f_s), f_t, self.guidance) for project, f_s, f_t in pairs)
