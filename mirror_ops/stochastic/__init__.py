"""Pictures as the noises of a stochastic sampler: DPM-encoder, edit-friendly DDPM, Langevin guidance."""
