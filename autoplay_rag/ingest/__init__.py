"""From a payload to a vector."""
