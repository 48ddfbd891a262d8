"""Input and output: images, videos, the files that a command line names, and result files. Knows no models."""
