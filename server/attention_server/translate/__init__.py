"""Between wire forms and the domain: they decode, encode and name fields; they check and choose nothing."""
