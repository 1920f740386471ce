"""From the picture to noise: DDIM inversion, its refinements, and inversions exact by construction."""
