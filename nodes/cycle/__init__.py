"""Nodes of CycleDiffusion: a picture as the noises of a stochastic sampler."""
