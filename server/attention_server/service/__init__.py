"""The core that every protocol calls."""
