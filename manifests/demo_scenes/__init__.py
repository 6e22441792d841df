"""Generated tabletop scenes of the demo dataset: what is in a scene, how it is drawn and what is asked about it."""
