"""How networks are trained: recipes, steps, batches, and trainings that are stored half way."""
