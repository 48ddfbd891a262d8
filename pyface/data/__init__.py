"""Folders of annotated images, for evaluation and training. Independent of the models."""
