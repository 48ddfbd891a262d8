"""The detector as a web service: an HTTP interface, a page for people, metrics. Needs the extra `serve`."""
