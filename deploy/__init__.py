"""From a trained network to a device."""
