"""The use-cases: what is done with an upload, in the order that keeps its promises."""
