"""The Open Inference Protocol's wire forms."""
