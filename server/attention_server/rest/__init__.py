"""REST: attention.v1's twin, the Open Inference Protocol, and an HTTP port's own: health, documents, the page."""
