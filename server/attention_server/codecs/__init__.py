"""Wire forms to and from the domain; nothing here calls the service."""
