"""Input and output, independent of models: images, videos, the files that a command line names, and result files."""
