"""Training of the detectors (`pyface train`): data, augmentation, recipes, the Lightning module and its callbacks."""
