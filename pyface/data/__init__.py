"""Folders of annotated images, for evaluation and training. Knows no models."""
