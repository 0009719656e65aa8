"""KV heads of a checkpoint: how stable their best pages are, and what reading those alone does to the model."""
