"""One model: planning, preprocessing, validation, computation and the shaping of its outputs."""
