"""From the wire to a callback."""
