"""The detector as a web service: an HTTP interface, a web page, metrics. Needs the extra `serve`."""
