"""Input and output: images, videos, the files that a command line names, and result files. Independent of the models."""
