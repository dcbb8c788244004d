"""Combine the files of two models to panoptic results."""
