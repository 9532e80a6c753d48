"""A student that learns embeddings from a teacher: targets, distillation, training (04)."""
