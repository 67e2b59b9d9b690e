"""REST: the twin of attention.v1 in JSON, and what belongs to an HTTP port: health, an OpenAPI document, a viewer."""
