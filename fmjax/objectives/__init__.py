"""Objectives: pure functions from a model's outputs to sums that the step normalises."""

from fmjax.objectives.augmented import Augmented
from fmjax.objectives.batch_statistics import BatchStatistics, with_batch_statistics
from fmjax.objectives.causal_lm import CausalLM, next_token_targets
from fmjax.objectives.classification import SequenceClassification
from fmjax.objectives.contrastive import ContrastiveImageText, clip_loss
from fmjax.objectives.dino import DINO
from fmjax.objectives.dinov2 import DINOv2
from fmjax.objectives.embedding import SentenceEmbedding
from fmjax.objectives.image_classification import ImageClassification
from fmjax.objectives.mae import MaskedAutoencoding
from fmjax.objectives.masked_lm import MaskedLM
from fmjax.objectives.preference import DPO, log_probabilities
from fmjax.objectives.pretraining import Pretraining
from fmjax.objectives.router import (
    expert_shares,
    load_balancing_loss,
    router_statistics,
    router_z_loss,
)
from fmjax.objectives.self_distillation import LAST_LAYER
from fmjax.objectives.sigmoid import SigmoidImageText, siglip_loss
from fmjax.objectives.simclr import SimCLR, nt_xent_loss
from fmjax.objectives.spans import QuestionAnswering
from fmjax.objectives.token_classification import TokenClassification

__all__ = [
    "Augmented",
    "BatchStatistics",
    "CausalLM",
    "ContrastiveImageText",
    "DINO",
    "DINOv2",
    "DPO",
    "ImageClassification",
    "LAST_LAYER",
    "MaskedAutoencoding",
    "MaskedLM",
    "Pretraining",
    "QuestionAnswering",
    "SentenceEmbedding",
    "SequenceClassification",
    "SigmoidImageText",
    "SimCLR",
    "TokenClassification",
    "clip_loss",
    "expert_shares",
    "load_balancing_loss",
    "log_probabilities",
    "next_token_targets",
    "nt_xent_loss",
    "router_statistics",
    "router_z_loss",
    "siglip_loss",
    "with_batch_statistics",
]
