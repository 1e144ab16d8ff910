"""CRD's memory bank and contrastive criterion."""

from .criterion import ContrastLoss, CRDLoss, Embed
from .memory import ContrastMemory

__all__ = ["CRDLoss", "ContrastLoss", "ContrastMemory", "Embed"]
