"""Evidence, Dirichlet opinions, their fusion, and the losses that train them: pure functions on [M, B, K]."""

from promptprism.evidence.fusion import FUSIONS, Fusion, FusionRule
from promptprism.evidence.losses import kl_to_vacuous, trusted_cross_entropy
from promptprism.evidence.maps import EvidenceKind, default_temperature, distance_factors, to_evidence
from promptprism.evidence.opinion import Opinion, Opinions, PartOfOpinion

__all__ = [
    "FUSIONS",
    "EvidenceKind",
    "Fusion",
    "FusionRule",
    "Opinion",
    "Opinions",
    "PartOfOpinion",
    "default_temperature",
    "distance_factors",
    "kl_to_vacuous",
    "to_evidence",
    "trusted_cross_entropy",
]
