"""The estimator: network, likelihood, base image, optimiser, LightningModule."""
