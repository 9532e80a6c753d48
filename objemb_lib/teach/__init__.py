"""A student that learns embeddings from a teacher: targets, distillation, training (04)."""

from objemb_lib import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "student": ["StudentTrunk", "load_student", "adaptive_cells"],
        "distillation": ["DistillConfig", "choose_regions", "cosine", "relational"],
        "targets": ["augmentation", "draw_batches"],
    },
)
