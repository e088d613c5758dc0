"""Estimator networks, mixture likelihood, base image, optimiser and LightningModule."""
