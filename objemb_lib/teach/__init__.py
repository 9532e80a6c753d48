"""A student that learns embeddings from a teacher: targets, distillation, training (04)."""

from objemb_lib import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "StudentTrunk": "student",
        "load_student": "student",
        "adaptive_cells": "student",
        "DistillConfig": "distillation",
        "choose_regions": "distillation",
        "cosine": "distillation",
        "relational": "distillation",
        "augmentation": "targets",
        "draw_batches": "targets",
    },
)
