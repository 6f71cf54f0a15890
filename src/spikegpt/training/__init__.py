"""Training: the loop, what it minimises, how it resumes, and the recipes built on it."""
