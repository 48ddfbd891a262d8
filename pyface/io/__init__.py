"""What comes in and goes out: images, the files that a command line names, files of results. Knows no models."""
