"""Folders of annotated pictures, for evaluation and training. Knows no models."""
