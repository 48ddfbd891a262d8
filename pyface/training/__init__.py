"""Training (`pyface train`): data, augmentation, recipes, and the Lightning modules and callbacks."""
